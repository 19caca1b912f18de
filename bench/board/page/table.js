// The ranked table: systems on top, ceilings and floors below a rule; every column sorts.
const WIDTH = 92, HEIGHT = 12;

function bar(row, column, table, subject) {
  const cell = cellOf(row, column.name, subject);
  if (!cell || cell.value === null) return null;
  const x = scaleOf(ends(table.rows, column, subject), column, 5, WIDTH - 5);
  const colour = ROLE[row.role], middle = HEIGHT / 2;
  const marks = table.rows.filter((other) => ["oracle", "mean-image"].includes(other.control)).map((other) => {
    const mark = cellOf(other, column.name, subject);
    if (!mark || mark.value === null) return null;
    return svg("line", { x1: x(mark.value), x2: x(mark.value), y1: 1, y2: HEIGHT - 1, stroke: ROLE[other.role], "stroke-width": 1, "stroke-dasharray": "2 1.5", opacity: 0.8 });
  });
  const [low, high] = cell.interval ?? [cell.value, cell.value];
  return svg("svg", { width: WIDTH, height: HEIGHT, role: "img", "aria-label": describe(row, column, subject) },
    svg("line", { x1: 0, x2: WIDTH, y1: middle, y2: middle, stroke: "var(--track)", "stroke-width": 2 }),
    marks,
    svg("line", { x1: x(low), x2: x(high), y1: middle, y2: middle, stroke: colour, "stroke-width": 7, opacity: 0.4 }),
    svg("line", { x1: x(cell.value), x2: x(cell.value), y1: 0, y2: HEIGHT, stroke: colour, "stroke-width": 2 }));
}

function bestValues(table, subject) {
  const best = {};
  for (const column of table.protocol.metrics) {
    const values = table.rows.filter((row) => row.role === "system")
      .map((row) => cellOf(row, column.name, subject)?.value).filter((value) => value !== null && value !== undefined);
    best[column.name] = column.higher_is_better ? Math.max(...values) : Math.min(...values);
  }
  return best;
}

function metricCell(row, column, table, state, best) {
  const cell = cellOf(row, column.name, state.subject);
  const share = row.metrics[column.name].normalised;
  const relative = state.shown === "normalised";
  const text = relative ? (share === null ? DASH : `${(100 * share).toFixed(0)}%`) : number(cell?.value, column);
  const top = table.ranked && row.role === "system" && cell?.value === best[column.name];
  return el("td", { class: top ? "best" : null, "data-tip": describe(row, column, state.subject) }, text,
    relative ? null : bar(row, column, table, state.subject));
}

function nameCell(row) {
  const tag = { ceiling: "ceiling", floor: "floor", leaky: "leaky, not ranked", oracle: "oracle selection, not ranked" }[row.role];
  const findings = row.leakage.map((found) => `${found.name}: ${found.finding}`);
  const facts = [`record ${row.record_id}`, `${row.data.betas} betas, ${row.data.voxelset}`, ...row.division_reasons, ...findings];
  return el("th", { scope: "row", "data-tip": [row.name, ...facts].join("\n") }, row.name,
    tag ? el("span", { class: "tag" }, tag) : null,
    row.role === "floor" || row.role === "ceiling" ? null : el("span", { class: "sub" }, row.record_id));
}

function rankCell(row) {
  if (row.rank === null) return el("td", { class: "rank" }, DASH);
  const [low, high] = row.rank_interval;
  const tip = `rank ${row.rank}, 95% interval ${low} to ${high}\n${row.borda.toFixed(1)} Borda points`;
  return el("td", { class: "rank", "data-tip": tip }, el("span", { class: "medal" }, String(row.rank)),
    low === high ? null : el("span", { class: "span" }, `${low}${DASH}${high}`));
}

function costCells(row, table) {
  const cost = row.costs;
  const stages = (kind) => Object.entries(cost.by_stage[kind]).map(([stage, value]) => `${stage} ${seconds(value)}`).join("\n");
  const gpu = table.rows.some((other) => other.costs.gpu_seconds > 0);
  const models = cost.models.map((model) => `${model.role} ${model.name}: ${count(model.parameters)} parameters`).join("\n");
  return [
    el("td", {}, String(row.configurations_tried)),
    el("td", { "data-tip": stages("cpu_seconds") || null }, seconds(cost.cpu_seconds)),
    gpu ? el("td", { "data-tip": stages("gpu_seconds") || null }, seconds(cost.gpu_seconds)) : null,
    el("td", { "data-tip": models || null }, cost.parameters ? count(cost.parameters) : DASH),
  ];
}

// What a column sorts by; missing values go to the bottom either way.
function sortKey(row, key, state) {
  if (key === "rank") return row.rank ?? Infinity;
  if (key === "name") return row.name.toLowerCase();
  if (key === "tried") return row.configurations_tried;
  if (["cpu_seconds", "gpu_seconds", "parameters"].includes(key)) return row.costs[key];
  return cellOf(row, key, state.subject)?.value ?? null;
}

function sorted(rows, state) {
  const { key, down } = state.sort;
  if (key === "rank" && !down) return rows;
  return [...rows].sort((a, b) => {
    const x = sortKey(a, key, state), y = sortKey(b, key, state);
    if (x === null || y === null) return (x === null) - (y === null);
    return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
  });
}

function headCell(key, label, better, state, redraw, tip) {
  const sort = () => {
    const again = state.sort.key === key;
    state.sort = { key, down: again ? !state.sort.down : better === "up" };
    redraw();
  };
  const direction = state.sort.key === key ? (state.sort.down ? "descending" : "ascending") : null;
  return el("th", { scope: "col", class: key === "rank" || key === "name" ? key : null, "aria-sort": direction, "data-tip": tip },
    el("button", { type: "button", on: { click: sort } }, label,
      better ? el("span", { class: "arrow" }, ` ${better === "up" ? "\u2191" : "\u2193"}`) : null));
}

function head(table, state, redraw) {
  const metric = (column) => {
    const tip = [`${column.label}: ${column.higher_is_better ? "higher" : "lower"} is better`,
      column.chance === null ? null : `chance ${number(column.chance, column)}`,
      column.ranked ? null : "does not count for the rank"].filter(Boolean).join("\n");
    return headCell(column.name, column.label, column.higher_is_better ? "up" : "down", state, redraw, tip);
  };
  const gpu = table.rows.some((row) => row.costs.gpu_seconds > 0);
  return el("thead", {}, el("tr", {},
    headCell("rank", "rank", null, state, redraw, "Borda rank and its bootstrap interval; overlapping systems share a rank"),
    headCell("name", "system", null, state, redraw),
    table.protocol.metrics.map(metric),
    headCell("tried", "tried", null, state, redraw, "configurations that tuning looked at"),
    headCell("cpu_seconds", "CPU", null, state, redraw, "CPU time, all stages"),
    gpu ? headCell("gpu_seconds", "GPU", null, state, redraw, "GPU time, all stages") : null,
    headCell("parameters", "params", null, state, redraw, "parameters of all models of the chain")));
}

function drawTable(table, state, redraw) {
  const best = bestValues(table, state.subject);
  const line = (row) => el("tr", { class: row.role, "data-record": row.record_id }, rankCell(row), nameCell(row),
    table.protocol.metrics.map((column) => metricCell(row, column, table, state, best)), costCells(row, table));
  const controls = table.rows.filter((row) => row.control), systems = table.rows.filter((row) => !row.control);
  const who = state.subject === "all" && table.subjects.length > 1 ? "mean over subjects" : `subject ${state.subject === "all" ? table.subjects[0] : state.subject}`;
  const ranks = table.ranked && table.subjects.length > 1 ? " Ranks always count all subjects." : "";
  section("ranking",
    table.ranked ? null : el("p", { class: "notice" }, table.heading),
    el("h2", {}, table.ranked ? "Ranking" : "Unranked"),
    el("p", { class: "note" }, `Values: ${who}. Bars: 95% bootstrap intervals, further right is better; dashed marks: mean image and oracle.${ranks}`),
    el("div", { class: "card scroll" }, el("table", { id: "scores" }, head(table, state, redraw),
      systems.length ? el("tbody", { class: "systems" }, sorted(systems, state).map(line)) : null,
      controls.length ? el("tbody", { class: "controls" }, sorted(controls, state).map(line)) : null)));
}
