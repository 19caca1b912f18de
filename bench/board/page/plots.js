// Plots: the winner against the floors, subjects one by one, score against cost.
// Drawn in the width that is there, so that letters keep their size on a narrow screen.
const NARROW = window.matchMedia("(max-width: 720px)");
const plotWidth = (wide) => (NARROW.matches ? Math.min(wide, Math.max(300, window.innerWidth - 74)) : wide);

function axis(scale, from, to, top, bottom, many, format) {
  return ticks(from, to, many).map((value) => [
    svg("line", { x1: scale(value), x2: scale(value), y1: top, y2: bottom, stroke: "var(--line)" }),
    svg("text", { x: scale(value), y: bottom + 16, "text-anchor": "middle" }, format(value)),
  ]).flat();
}

function forest(entries, table, control) {
  const columns = Object.fromEntries(table.protocol.metrics.map((column) => [column.name, column]));
  // Turned so that right is better in every row.
  const better = entries.map((entry) => {
    const sign = columns[entry.metric].higher_is_better ? 1 : -1;
    const span = entry.interval.map((end) => sign * end).sort((a, b) => a - b);
    return { ...entry, middle: sign * entry.difference, low: span[0], high: span[1] };
  });
  const low = Math.min(0, ...better.map((entry) => entry.low)), high = Math.max(0, ...better.map((entry) => entry.high));
  const width = plotWidth(620), left = NARROW.matches ? 116 : 150, right = width - (NARROW.matches ? 64 : 90), row = 26, bottom = 8 + row * better.length;
  const x = (value) => left + ((value - low) / (high - low || 1)) * (right - left);
  const lines = better.map((entry, index) => {
    const y = 8 + row * (index + 0.5), colour = entry.better ? ROLE.system : "var(--faint)";
    const column = columns[entry.metric];
    const tip = `${column.label}: ${signed(entry.difference)}\n95% interval ${entry.interval.map(signed).join(" to ")}\nn = ${entry.n}`;
    return svg("g", { "data-tip": tip },
      svg("rect", { x: 0, y: y - row / 2, width, height: row, fill: "transparent" }),
      svg("text", { x: left - 12, y: y + 4, "text-anchor": "end" }, `${column.label} ${arrow(column)}`),
      svg("line", { x1: x(entry.low), x2: x(entry.high), y1: y, y2: y, stroke: colour, "stroke-width": 5, "stroke-linecap": "round", opacity: 0.4 }),
      svg("circle", { cx: x(entry.middle), cy: y, r: 4.5, fill: colour }),
      svg("text", { x: width, y: y + 4, "text-anchor": "end", class: entry.better ? "strong" : null }, signed(entry.difference)));
  });
  return el("div", { class: "card" }, el("h3", {}, `minus ${control}`),
    svg("svg", { viewBox: `0 0 ${width} ${bottom + 26}`, role: "img", "aria-label": `Paired differences to ${control}` },
      axis(x, low, high, 4, bottom, NARROW.matches ? 2 : 5, (value) => value.toFixed(2)),
      svg("line", { x1: x(0), x2: x(0), y1: 0, y2: bottom, stroke: "var(--soft)", "stroke-width": 1.5 }), lines));
}

function drawFloors(table) {
  const names = Object.fromEntries(table.rows.map((row) => [row.record_id, row.name]));
  const groups = new Map();
  for (const entry of table.comparisons) groups.set(entry.control, [...(groups.get(entry.control) ?? []), entry]);
  if (!groups.size) return section("floors");
  const winner = names[table.comparisons[0].system];
  const panels = [...groups].map(([control, entries]) => forest(entries, table, names[control]));
  section("floors", el("h2", {}, `Does the best system see the image? ${winner}`),
    el("p", { class: "note" }, "Paired differences on the same images and subjects, turned so that right is better, with 95% intervals. Grey: not shown to be better."),
    el("div", { class: "panels" }, panels));
}

function strip(table, column) {
  const rows = table.rows.filter((row) => row.metrics[column.name].value !== null);
  const width = plotWidth(660), left = NARROW.matches ? 120 : 190, right = width - 16, step = 28, bottom = 8 + step * rows.length;
  const values = rows.flatMap((row) => Object.values(row.metrics[column.name].per_subject).map((cell) => cell.value))
    .filter((value) => value !== null);
  if (!values.length) return null;
  const x = scaleOf([...values, ...ends(rows, column, "all")], column, left, right);
  const lines = rows.map((row, index) => {
    const y = 8 + step * (index + 0.5), cell = row.metrics[column.name], colour = ROLE[row.role];
    const dots = Object.entries(cell.per_subject).filter(([, own]) => own.value !== null).map(([subject, own]) =>
      svg("circle", { cx: x(own.value), cy: y, r: 4, fill: colour, opacity: 0.45, "data-tip": `subject ${subject}\n${describe(row, column, subject)}` }));
    return svg("g", {},
      svg("text", { x: left - 14, y: y + 4, "text-anchor": "end", class: row.role === "system" ? "strong" : null }, shorten(row.name, NARROW.matches ? 13 : 24)),
      svg("line", { x1: left, x2: right, y1: y, y2: y, stroke: "var(--track)" }), dots,
      svg("line", { x1: x(cell.value), x2: x(cell.value), y1: y - 9, y2: y + 9, stroke: colour, "stroke-width": 3, "data-tip": describe(row, column, "all") }));
  });
  return svg("svg", { viewBox: `0 0 ${width} ${bottom + 26}`, role: "img", "aria-label": `${column.label} of each subject` },
    axis(x, x.low, x.high, 4, bottom, NARROW.matches ? 3 : 6, (value) => number(value, column)), lines);
}

const shorten = (name, most) => (name.length > most ? `${name.slice(0, most - 1)}\u2026` : name);

function heat(table, column) {
  const floor = table.rows.find((row) => row.control === "mean-image"), ceiling = table.rows.find((row) => row.control === "oracle");
  const level = (own, subject) => {
    const [a, b] = [floor, ceiling].map((row) => row?.metrics[column.name].per_subject[subject]?.value);
    return own.value === null || !Number.isFinite(a) || !Number.isFinite(b) || a === b ? 0 : Math.min(1, Math.max(0, (own.value - a) / (b - a)));
  };
  const line = (row) => el("tr", { class: row.role }, el("th", { scope: "row" }, row.name), table.subjects.map((subject) => {
    const own = row.metrics[column.name].per_subject[subject];
    if (!own) return el("td", { class: "heat" }, DASH);
    const cell = el("td", { class: "heat", "data-tip": `subject ${subject}\n${describe(row, column, String(subject))}` }, number(own.value, column));
    if (row.role === "system") cell.style.background = `color-mix(in srgb, var(--accent) ${(45 * level(own, subject)).toFixed(0)}%, transparent)`;
    return cell;
  }));
  const titles = table.subjects.map((subject) => el("th", { scope: "col" }, `S${subject}`));
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", { class: "name" }, "system"), titles)),
    el("tbody", {}, table.rows.map(line))));
}

function drawSubjects(table, state) {
  if (table.subjects.length < 2) return section("subjects");
  const column = table.protocol.metrics.find((metric) => metric.name === state.metric) ?? table.protocol.metrics[0];
  section("subjects", el("h2", {}, `Subject by subject: ${column.label} ${arrow(column)}`),
    el("p", { class: "note" }, "Dots: subjects; upright bar: their mean. Right is better. Shading: share of the way from that subject's mean image to its oracle."),
    el("div", { class: "panels" }, el("div", { class: "card" }, strip(table, column)), el("div", { class: "card" }, heat(table, column))));
}

function drawCosts(table, state) {
  const column = table.protocol.metrics.find((metric) => metric.name === state.metric) ?? table.protocol.metrics[0];
  const spent = (row) => row.costs.gpu_seconds + row.costs.cpu_seconds;
  const rows = table.rows.filter((row) => row.role === "system" && spent(row) > 0 && row.metrics[column.name].value !== null);
  if (rows.length < 2) return section("costs");
  const width = plotWidth(900), height = 300, left = NARROW.matches ? 46 : 70, right = width - (NARROW.matches ? 110 : 190), bottom = height - 44;
  const powers = rows.map((row) => Math.log10(spent(row)));
  const low = Math.min(...powers) - 0.1, high = Math.max(...powers) + 0.1;
  const x = (power) => left + ((power - low) / (high - low)) * (right - left);
  const up = scaleOf(ends(rows, column, "all"), column, 0, bottom - 16);
  const y = (value) => bottom - up(value);
  const marks = ticks(up.low, up.high, 5).map((value) => [
    svg("line", { x1: left, x2: right, y1: y(value), y2: y(value), stroke: "var(--line)" }),
    svg("text", { x: left - 10, y: y(value) + 4, "text-anchor": "end" }, number(value, column))]).flat();
  const times = ticks(low, high, NARROW.matches ? 2 : 4).map((power) => svg("text", { x: x(power), y: bottom + 20, "text-anchor": "middle" }, seconds(10 ** power)));
  // Names move apart where points lie close; each stays beside its own point as far as it can.
  const heights = new Map();
  for (const row of [...rows].sort((a, b) => y(a.metrics[column.name].value) - y(b.metrics[column.name].value))) {
    const near = [...heights].filter(([other]) => Math.abs(x(powers[rows.indexOf(other)]) - x(powers[rows.indexOf(row)])) < 180);
    heights.set(row, Math.max(y(row.metrics[column.name].value) + 4, ...near.map(([, height]) => height + 14)));
  }
  const points = rows.map((row, index) => {
    const cell = row.metrics[column.name], [from, to] = cell.interval ?? [cell.value, cell.value], at = x(powers[index]);
    return svg("g", { "data-tip": `${describe(row, column, "all")}\n${seconds(row.costs.cpu_seconds)} CPU, ${seconds(row.costs.gpu_seconds)} GPU` },
      svg("line", { x1: at, x2: at, y1: y(from), y2: y(to), stroke: ROLE.system, "stroke-width": 4, "stroke-linecap": "round", opacity: 0.4 }),
      svg("circle", { cx: at, cy: y(cell.value), r: 5, fill: ROLE.system }),
      svg("text", { x: at + 11, y: heights.get(row), class: "strong" }, shorten(row.name, NARROW.matches ? 14 : 26)));
  });
  section("costs", el("h2", {}, `Score against cost: ${column.label} ${arrow(column)}`),
    el("p", { class: "note" }, "CPU and GPU seconds of all stages together, on a logarithmic scale; further up is better."),
    el("div", { class: "card padded" }, svg("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img", "aria-label": `${column.label} against cost` },
      marks, times, svg("text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, "CPU + GPU time"), points)));
}
