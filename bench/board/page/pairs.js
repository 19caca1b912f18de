// Any two rows of a table: paired differences by metric, with intervals, tests and the verdict in words.
const pValue = (value) => (value < 0.001 ? "<.001" : value.toFixed(3).replace(/^0/, ""));

function flipped(entry) {
  return { ...entry, first: entry.second, second: entry.first, difference: -entry.difference, interval: [-entry.interval[1], -entry.interval[0]] };
}

// A floor's entry says only whether the system is better; whether the floor is follows from the same two conditions.
function floorEntry(entry, column, level) {
  const [low, high] = entry.interval, behind = column.higher_is_better ? high < 0 : low > 0;
  const worse = !entry.better && behind && entry.p_adjusted <= 1 - level + 1e-12;
  return { ...entry, first: entry.system, second: entry.control, better: entry.better ? entry.system : worse ? entry.control : null };
}

// The stored tests of two rows, first minus second whichever way round they are stored.
function testsOf(table, first, second, level) {
  const columns = Object.fromEntries(table.protocol.metrics.map((column) => [column.name, column]));
  const floors = table.comparisons.map((entry) => floorEntry(entry, columns[entry.metric], level));
  return [...table.pairs, ...floors].filter((entry) => [first, second].includes(entry.first) && [first, second].includes(entry.second))
    .map((entry) => (entry.first === first ? entry : flipped(entry)));
}

function verdictOf(entry, names) {
  return entry.better ? `${names[entry.better]} is better` : "no difference shown";
}

function summaryOf(entries, names, first, second) {
  const [ahead, behind] = [first, second].map((id) => entries.filter((entry) => entry.better === id).length);
  const rest = entries.length - ahead - behind;
  return `${names[first]} against ${names[second]}: better on ${ahead}, worse on ${behind}, no difference shown on ${rest} of ${plural(entries.length, "metric", "metrics")}.`;
}

function pairTable(entries, table, names) {
  const columns = Object.fromEntries(table.protocol.metrics.map((column) => [column.name, column]));
  const width = NARROW.matches ? 170 : 300, edge = 22, all = entries.flatMap((entry) => entry.interval.map((end) => (columns[entry.metric].higher_is_better ? end : -end)));
  const low = Math.min(0, ...all), high = Math.max(0, ...all);
  const x = (value) => edge + ((value - low) / (high - low || 1)) * (width - 2 * edge);
  const drawn = (entry) => {
    const sign = columns[entry.metric].higher_is_better ? 1 : -1, colour = entry.better ? ROLE.system : "var(--faint)";
    const [from, to] = entry.interval.map((end) => x(sign * end)).sort((a, b) => a - b);
    return svg("svg", { width, height: 22, role: "img", "aria-label": `${columns[entry.metric].label}: ${signed(entry.difference)}` },
      svg("line", { x1: x(0), x2: x(0), y1: 0, y2: 22, stroke: "var(--soft)", "stroke-width": 1.5 }),
      svg("line", { x1: from, x2: to, y1: 11, y2: 11, stroke: colour, "stroke-width": 5, "stroke-linecap": "round", opacity: 0.4 }),
      svg("circle", { cx: x(sign * entry.difference), cy: 11, r: 4.5, fill: colour }));
  };
  const line = (entry) => el("tr", { "data-metric": entry.metric }, el("th", { scope: "row" }, `${columns[entry.metric].label} ${arrow(columns[entry.metric])}`),
    el("td", { class: "drawn" }, drawn(entry)), el("td", { class: entry.better ? "best" : null }, signed(entry.difference)),
    el("td", {}, `${signed(entry.interval[0])} to ${signed(entry.interval[1])}`), el("td", {}, pValue(entry.p_value)), el("td", {}, pValue(entry.p_adjusted)),
    el("td", { class: "words" }, verdictOf(entry, names)));
  const titles = ["metric", "right: the first is better", "difference", "95% interval", "p", "p\u00a0(Holm)", "verdict"];
  const marks = ticks(low, high > low ? high : low + 1, NARROW.matches ? 2 : 4).map((value) => svg("text", { x: x(value), y: 12, "text-anchor": "middle" }, value.toFixed(2)));
  return el("table", { id: "tests" }, el("thead", {}, el("tr", {}, titles.map((title, place) => el("th", { scope: "col", class: [0, 6].includes(place) ? "name" : null }, title)))),
    el("tbody", {}, entries.map(line), el("tr", { class: "axis" }, el("td", {}), el("td", { class: "drawn" }, svg("svg", { width, height: 16, "aria-hidden": "true" }, marks)), el("td", { colspan: 5 }))));
}

function drawPairs(table, state, choice, rule, level) {
  const compared = new Set(table.comparisons.map((entry) => entry.control));
  const rows = table.ranked ? table.rows.filter((row) => row.rank !== null || compared.has(row.record_id)) : [];
  if (rows.length < 2) return section("pairs");
  const ids = rows.map((row) => row.record_id), names = Object.fromEntries(rows.map((row) => [row.record_id, row.name]));
  if (!state.pair.every((id) => ids.includes(id)) || state.pair.length < 2) state.pair = ids.slice(0, 2);
  const [first, second] = state.pair;
  const many = (row) => (rows.filter((other) => other.name === row.name).length > 1 ? `${row.name} (${row.record_id})` : row.name);
  const options = rows.map((row) => [row.record_id, many(row)]);
  // Choosing the row of the other side exchanges the two.
  const pick = (place) => (id) => { state.pair = state.pair.map((old, side) => (side === place ? id : old === id ? state.pair[place] : old)); };
  const entries = testsOf(table, first, second, level);
  const command = `reconbench leaderboard compare ${first} ${second}`;
  section("pairs", el("h2", {}, "Any two rows"), el("p", { class: "note" }, rule.text),
    el("div", { class: "choices" }, choice("first row", options, first, pick(0)), choice("second row", options, second, pick(1))),
    entries.length ? [el("p", { class: "verdict", role: "status" }, summaryOf(entries, names, first, second)), el("div", { class: "card scroll" }, pairTable(entries, table, names))]
      : el("p", { class: "verdict", role: "status" }, "This pair is not stored with the board, which holds ",
        `all pairs of up to ${rule.all_pairs_up_to} systems, neighbours in rank of more, and the best system against floors. To compute it from the records: `, el("code", {}, command)));
}
