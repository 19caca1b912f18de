// State, filters and everything around the table.
const board = JSON.parse(document.getElementById("board").textContent);
const gallery = JSON.parse(document.getElementById("pictures").textContent);
const state = { table: board.tables[0]?.id, subject: "all", metric: null, shown: "value", sort: { key: "rank", down: false }, pair: [], open: new Set() };
const unique = (values) => [...new Set(values)];
const current = () => board.tables.find((table) => table.id === state.table);

function choice(label, options, chosen, pick) {
  if (options.length < 2) return null;
  const entries = options.map(([value, text]) => el("option", { value, selected: value === chosen ? "" : null }, text));
  return el("label", {}, label, el("select", { id: `pick-${label.replaceAll(" ", "-")}`, on: { change: (event) => { pick(event.target.value); redraw(); } } }, entries));
}

function toTable(tables) {
  state.table = tables[0].id;
  state.subject = "all";
  state.sort = { key: "rank", down: false };
}

function protocolName(table) {
  return `${table.protocol.name} v${table.protocol.version}${table.protocol.untrained ? " (untrained)" : ""}`;
}

function tableName(table) {
  return `${table.division}, subjects ${table.subjects.join(", ")}, ${table.dataset.test_stimuli} images`;
}

function drawFilters(table) {
  const datasets = unique(board.tables.map((other) => other.dataset.name));
  const here = board.tables.filter((other) => other.dataset.name === table.dataset.name);
  const same = here.filter((other) => protocolName(other) === protocolName(table));
  const subjects = [["all", "all (mean)"], ...table.subjects.map((subject) => [String(subject), `subject ${subject}`])];
  const metrics = table.protocol.metrics.map((column) => [column.name, column.label]);
  const shares = table.rows.some((row) => Object.values(row.metrics).some((cell) => cell.normalised !== null));
  section("filters", ...[
    choice("dataset", datasets.map((name) => [name, name]), table.dataset.name,
      (name) => toTable(board.tables.filter((other) => other.dataset.name === name))),
    choice("protocol", unique(here.map(protocolName)).map((name) => [name, name]), protocolName(table),
      (name) => toTable(here.filter((other) => protocolName(other) === name))),
    choice("table", same.map((other) => [other.id, tableName(other)]), table.id,
      (id) => toTable(same.filter((other) => other.id === id))),
    choice("subject", subjects.length > 2 ? subjects : [], state.subject, (subject) => { state.subject = subject; }),
    choice("metric in plots", metrics, state.metric, (name) => { state.metric = name; }),
    shares && state.subject === "all" ? choice("numbers", [["value", "values"], ["normalised", "mean image = 0%, oracle = 100%"]], state.shown,
      (shown) => { state.shown = shown; }) : null,
  ].filter(Boolean));
}

function drawHeader(table) {
  const systems = table.rows.filter((row) => row.role === "system").length;
  const facts = [[String(table.dataset.test_stimuli), "test images a subject"], [String(table.subjects.length), table.subjects.length === 1 ? "subject" : "subjects"],
    [String(systems), systems === 1 ? "system" : "systems"], [String(table.protocol.metrics.length), "metrics"],
    [table.dataset.name, `dataset, ${table.dataset.split} split`], [protocolName(table), `protocol, ${table.division} division`]];
  section("lede", table.protocol.summary || `Scored under ${protocolName(table)}.`);
  section("facts", facts.map(([value, name]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function drawExcluded() {
  if (!board.excluded.length) return section("excluded");
  const line = (entry) => el("tr", {}, el("th", { scope: "row" }, entry.name), el("td", {}, entry.kind), el("td", {}, entry.reason),
    el("td", {}, entry.protocol), el("td", {}, el("code", {}, entry.record_id)));
  const titles = ["system", "why", "in detail", "protocol", "record"].map((title) => el("th", { scope: "col" }, title));
  section("excluded", el("h2", {}, "Not competing"), el("p", { class: "note" }, "Failed runs, leaky systems, selection by the true image and superseded scores stay visible."),
    el("div", { class: "card scroll" }, el("table", {}, el("thead", {}, el("tr", {}, titles)), el("tbody", {}, board.excluded.map(line)))));
}

function drawNotes() {
  const rule = board.rule;
  section("notes", el("p", {}, `${rule.text} ${rule.resamples} resamples, seed ${rule.seed}.`),
    el("p", {}, "Floors: chance, the mean training image, and systems refitted on shuffled pairs. Ceiling: rendered from the true latents. Neither competes."),
    el("p", {}, `Built from ${plural(board.records.count, "record", "records")}, digest ${board.records.digest}.`));
}

// Everything is drawn anew, and what had the focus has it again, so that the keyboard stays where it was.
function redraw() {
  const focused = document.activeElement?.id;
  draw(current());
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

function draw(table) {
  if (!table) {
    section("ranking", el("p", { class: "notice" }, "No scores yet."));
  } else {
    if (state.subject !== "all") state.shown = "value";
    if (!table.protocol.metrics.some((column) => column.name === state.metric)) state.metric = table.protocol.metrics[0].name;
    drawHeader(table);
    drawFilters(table);
    drawTable(table, state, redraw);
    drawPairs(table, state, choice, board.rule.comparisons, board.rule.level);
    drawFloors(table);
    drawSubjects(table, state);
    drawCosts(table, state);
    drawGallery(table, state);
    followPapers(table.dataset.name, table.protocol.name);
  }
  drawExcluded();
  drawNotes();
}

document.addEventListener("mousemove", showTip);
NARROW.addEventListener("change", redraw);
const followPapers = drawPapers(board.published);
redraw();
openLinked();
