// The ranked table: systems on top, ceilings and floors below a rule; every column sorts.
const WIDTH = 80, HEIGHT = 12;

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

// The name opens the row's details below it.
function nameCell(row, state, redraw) {
  const open = state.open.has(row.record_id);
  const toggle = () => { if (!state.open.delete(row.record_id)) state.open.add(row.record_id); redraw(); };
  return el("th", { scope: "row" },
    el("button", { type: "button", class: "expand", id: `details-${row.record_id}`, "aria-expanded": String(open), on: { click: toggle } }, row.name),
    tagsOf(row).map((tag) => el("span", { class: "tag" }, tag)),
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
  if (key === "rank") return row.rank;
  if (key === "name") return row.name.toLowerCase();
  if (key === "tried") return row.configurations_tried;
  if (["cpu_seconds", "gpu_seconds", "parameters"].includes(key)) return row.costs[key];
  return cellOf(row, key, state.subject)?.value ?? null;
}

function ordered(rows, key, down) {
  return [...rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (x === null || y === null) return (x === null) - (y === null);
    return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
  });
}

// The head of a column that sorts; `sort` holds its key and direction.
function headCell(key, label, better, sort, redraw, tip, id) {
  const choose = () => {
    Object.assign(sort, { key, down: sort.key === key ? !sort.down : better === "up" });
    redraw(id);
  };
  const direction = sort.key === key ? (sort.down ? "descending" : "ascending") : null;
  return el("th", { scope: "col", class: ["rank", "name", "system"].includes(key) ? "name" : null, "aria-sort": direction, "data-tip": tip },
    el("button", { type: "button", id, on: { click: choose } }, label,
      better ? el("span", { class: "arrow" }, `\u00a0${better === "up" ? "\u2191" : "\u2193"}`) : null));
}

function head(table, state, redraw) {
  const title = (key, label, better, tip) => headCell(key, label, better, state.sort, redraw, tip, `sort-${key}`);
  const metric = (column) => {
    const tip = [`${column.label}: ${column.higher_is_better ? "higher" : "lower"} is better`,
      column.chance === null ? null : `chance ${number(column.chance, column)}`,
      column.ranked ? null : "does not count for the rank"].filter(Boolean).join("\n");
    return title(column.name, column.label, column.higher_is_better ? "up" : "down", tip);
  };
  const gpu = table.rows.some((row) => row.costs.gpu_seconds > 0);
  return el("thead", {}, el("tr", {},
    title("rank", "rank", null, "Borda rank and its bootstrap interval; overlapping systems share a rank"),
    title("name", "system", null, null),
    table.protocol.metrics.map(metric),
    title("tried", "tried", null, "configurations that tuning looked at"),
    title("cpu_seconds", "CPU", null, "CPU time, all stages"),
    gpu ? title("gpu_seconds", "GPU", null, "GPU time, all stages") : null,
    title("parameters", "params", null, "parameters of all models of the chain")));
}

// Groups of rows that never mix whatever is sorted, the unranked ones under a heading that says why.
const GROUPS = [
  ["systems", ["system"], null],
  ["apart", ["oracle"], "Oracle selection: the best of several samples was chosen by the true image. An upper bound, no result; never ranked."],
  ["apart", ["leaky"], "Leaky: the audit found what a system must not have seen. Never ranked."],
  ["controls", ["ceiling", "floor"], "Controls: ceilings and floors."],
];

function drawTable(table, state, redraw) {
  const best = bestValues(table, state.subject), width = 5 + table.protocol.metrics.length + table.rows.some((row) => row.costs.gpu_seconds > 0);
  const line = (row) => [el("tr", { class: row.role, "data-record": row.record_id }, rankCell(row), nameCell(row, state, redraw),
    table.protocol.metrics.map((column) => metricCell(row, column, table, state, best)), costCells(row, table)),
  state.open.has(row.record_id) ? el("tr", { class: "details", "data-details": row.record_id }, el("td", { colspan: width }, detailsOf(row))) : null];
  const bodies = GROUPS.map(([name, roles, heading]) => {
    const rows = table.rows.filter((row) => roles.includes(row.role));
    return rows.length ? el("tbody", { class: name }, heading ? el("tr", { class: "why" }, el("th", { colspan: width, scope: "rowgroup" }, el("span", {}, heading))) : null,
      ordered(rows, (row) => sortKey(row, state.sort.key, state), state.sort.down).flatMap(line)) : null;
  });
  const who = state.subject === "all" && table.subjects.length > 1 ? "mean over subjects" : `subject ${state.subject === "all" ? table.subjects[0] : state.subject}`;
  const ranks = table.ranked && table.subjects.length > 1 ? " Ranks always count all subjects." : "";
  section("ranking",
    table.ranked ? null : el("p", { class: "notice" }, table.heading),
    el("h2", {}, table.ranked ? "Ranking" : "Unranked"),
    el("p", { class: "note" }, `Values: ${who}. Bars: 95% bootstrap intervals, further right is better; dashed marks: mean image and oracle.${ranks} A name opens its details.`),
    el("div", { class: "card scroll" }, el("table", { id: "scores" }, head(table, state, redraw), bodies)));
}
