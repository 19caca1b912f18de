// Results of papers: folded, below our own rows, in another style, never ranked. Corrected values show what was printed.
const READ = {
  read: "read in the paper or code named", verified: "recomputed", secondary: "quoted by another paper, slide or note",
  inferred: "plausible, not shown in the source", memory: "not looked up",
};

function published(value, column) {
  if (value === undefined) return DASH;
  return column.kind === "identification" ? `${(100 * value).toFixed(column.decimals)}%` : value.toFixed(column.decimals);
}

function paperCell(row, column) {
  const fix = row.corrections.find((entry) => entry.column === column.name);
  const value = published(row.values[column.name], column);
  if (!fix) return el("td", {}, value);
  return el("td", { "data-tip": `printed ${published(fix.printed, column)}, corrected to ${value}\n${fix.reason}` },
    el("span", { class: "fixed" }, value), el("s", {}, published(fix.printed, column)));
}

function paperRow(row, table) {
  const unstated = (value) => (value === null ? "unstated" : value);
  const subject = row.subjects.length === 1 ? `subject ${row.subjects[0]}` : "";
  const below = [row.setting, subject].filter(Boolean).join(", ");
  const remarks = [...row.deviations, ...row.corrections.map((fix) => `${fix.column} corrected: ${fix.reason}`)].join("; ");
  return el("tr", { "data-paper": table.name }, el("th", { scope: "row" }, row.system, below ? el("span", { class: "sub" }, below) : null, el("span", { class: "sub" }, row.source)),
    table.columns.map((column) => paperCell(row, column)),
    el("td", { "data-tip": `subjects ${row.subjects.join(", ") || "unstated"}; sessions ${unstated(row.sessions)}` }, unstated(row.test_images)),
    el("td", { class: "words", "data-tip": READ[row.read] }, row.read), el("td", { class: "words" }, row.protocol),
    el("td", { class: "remarks" }, remarks || DASH));
}

// What a column of papers sorts by; what a row does not state goes to the bottom either way.
const PAPER_KEYS = {
  system: (row) => row.system.toLowerCase(), images: (row) => row.test_images, read: (row) => row.read,
  protocol: (row) => row.protocol, deviations: (row) => row.deviations.length,
};

function paperGrid(table) {
  const sort = { key: null, down: false };
  const grid = el("table", {});
  const facts = [["images", "test images"], ["read", "how read"], ["protocol", "protocol"], ["deviations", "known deviations"]];
  const draw = (focus) => {
    const key = PAPER_KEYS[sort.key] ?? ((row) => row.values[sort.key] ?? null);
    const rows = sort.key === null ? table.rows : ordered(table.rows, key, sort.down);
    const title = (name, label, better) => headCell(name, label, better, sort, (chosen) => draw(chosen), null, `paper-sort-${table.name}-${name}`);
    grid.replaceChildren(el("thead", {}, el("tr", {}, title("system", "system, source", null),
      table.columns.map((column) => title(column.name, column.label, column.higher_is_better ? "up" : "down")), facts.map(([name, label]) => title(name, label, null)))),
      el("tbody", {}, rows.map((row) => paperRow(row, table))));
    if (focus) document.getElementById(focus)?.focus();
  };
  draw(null);
  return el("div", { class: "scroll" }, grid);
}

function paperTable(table, first) {
  const note = [`Data ${table.dataset}.`, ...table.deviations.map((line) => `${line[0].toUpperCase()}${line.slice(1).replace(/\.$/, "")}.`)].join(" ");
  return el("details", { class: "paper", open: table.kind === "main" ? "" : null },
    el("summary", {}, `${table.title} (${plural(table.rows.length, "row", "rows")})`, first ? el("span", { class: "tag" }, first) : null),
    el("p", { class: "note" }, note), paperGrid(table));
}

// The protocols of a table: its own, and those of rows that follow another.
const protocolsOf = (table) => unique([table.protocol, ...table.rows.map((row) => row.protocol)]);

// Draws the tables once; returns what follows the filters above, for papers know their data and protocols where we do.
function drawPapers(tables) {
  if (!tables.length) return () => {};
  const wanted = { protocol: "all", dataset: "all" }, above = { protocol: null, dataset: null };
  const list = el("div", {});
  const names = { protocol: unique(tables.flatMap(protocolsOf)), dataset: unique(tables.map((table) => table.dataset)) };
  const fits = (table) => (wanted.dataset === "all" || table.dataset === wanted.dataset)
    && (wanted.protocol === "all" || protocolsOf(table).includes(wanted.protocol));
  const narrowed = (table) => ({ ...table, rows: table.rows.filter((row) => wanted.protocol === "all" || row.protocol === wanted.protocol) });
  const near = (table) => 2 * (table.dataset === above.dataset) + protocolsOf(table).includes(above.protocol);
  const mark = (table) => (near(table) === 3 ? "data and protocol chosen above" : near(table) === 2 ? "data chosen above" : null);
  const show = () => {
    const shown = tables.filter(fits).map(narrowed).filter((table) => table.rows.length).sort((a, b) => near(b) - near(a));
    list.replaceChildren(...(shown.length ? shown.map((table) => paperTable(table, mark(table))) : [el("p", { class: "note" }, "No published row has this protocol on these data.")]));
  };
  const pick = (key) => el("label", {}, key, el("select", { id: `paper-${key}`, on: { change: (event) => { wanted[key] = event.target.value; show(); } } },
    ["all", ...names[key]].map((name) => el("option", { value: name }, name))));
  const rows = tables.reduce((sum, table) => sum + table.rows.length, 0);
  section("published", el("details", {}, el("summary", {}, `Published results: ${rows} rows of ${tables.length} tables in papers`),
    el("p", { class: "note" }, "As printed by their authors or quoted by others, each under its own protocol; never ranked with the rows above, and comparable only within a table. Struck out: a printed value that cannot be right, beside the corrected one. The filters above move these two as well where papers have such data or such a protocol."),
    el("div", { class: "choices" }, pick("protocol"), pick("dataset")), list));
  show();
  return (dataset, protocol) => {
    if (dataset === above.dataset && protocol === above.protocol) return;
    Object.assign(above, { dataset, protocol });
    for (const key of ["protocol", "dataset"]) {
      wanted[key] = names[key].includes(above[key]) ? above[key] : "all";
      document.getElementById(`paper-${key}`).value = wanted[key];
    }
    show();
  };
}
