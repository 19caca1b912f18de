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
  const tip = [row.system, row.source, `read: ${READ[row.read]}`, `protocol ${row.protocol}`,
    `subjects ${row.subjects.join(", ") || "unstated"}; test images ${unstated(row.test_images)}; sessions ${unstated(row.sessions)}`].join("\n");
  const subject = row.subjects.length === 1 ? `subject ${row.subjects[0]}` : "";
  const below = [row.setting, subject].filter(Boolean).join(", ");
  const remarks = [...row.deviations, ...row.corrections.map((fix) => `${fix.column} corrected: ${fix.reason}`)].join("; ");
  return el("tr", { "data-paper": table.name }, el("th", { scope: "row", "data-tip": tip }, row.system, below ? el("span", { class: "sub" }, below) : null),
    table.columns.map((column) => paperCell(row, column)),
    el("td", { class: "words", "data-tip": READ[row.read] }, row.read),
    el("td", { class: "words" }, row.protocol), el("td", { class: "remarks" }, remarks));
}

function paperTable(table) {
  const sources = unique(table.rows.map((row) => row.source));
  const titles = ["system", ...table.columns.map((column) => `${column.label} ${arrow(column)}`), "how read", "protocol", "known deviations"];
  const note = [`Data ${table.dataset}; source: ${sources.slice(0, 3).join("; ")}${sources.length > 3 ? " and others, by row" : ""}.`,
    ...table.deviations.map((line) => `${line[0].toUpperCase()}${line.slice(1).replace(/\.$/, "")}.`)].join(" ");
  return el("details", { class: "paper", open: table.kind === "main" ? "" : null },
    el("summary", {}, `${table.title} (${plural(table.rows.length, "row", "rows")})`), el("p", { class: "note" }, note),
    el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, titles.map((title) => el("th", { scope: "col" }, title)))),
      el("tbody", {}, table.rows.map((row) => paperRow(row, table))))));
}

// The protocols of a table: its own, and those of rows that follow another.
const protocolsOf = (table) => unique([table.protocol, ...table.rows.map((row) => row.protocol)]);

function drawPapers(tables) {
  if (!tables.length) return;
  const wanted = { protocol: "all", dataset: "all" };
  const list = el("div", {});
  const fits = (table) => (wanted.dataset === "all" || table.dataset === wanted.dataset)
    && (wanted.protocol === "all" || protocolsOf(table).includes(wanted.protocol));
  const narrowed = (table) => ({ ...table, rows: table.rows.filter((row) => wanted.protocol === "all" || row.protocol === wanted.protocol) });
  const show = () => list.replaceChildren(...tables.filter(fits).map(narrowed).filter((table) => table.rows.length).map(paperTable));
  const pick = (key, names) => el("label", {}, key, el("select", { id: `paper-${key}`, on: { change: (event) => { wanted[key] = event.target.value; show(); } } },
    ["all", ...names].map((name) => el("option", { value: name }, name))));
  show();
  const rows = tables.reduce((sum, table) => sum + table.rows.length, 0);
  section("published", el("details", {}, el("summary", {}, `Published results: ${rows} rows of ${tables.length} tables in papers`),
    el("p", { class: "note" }, "As printed by their authors or quoted by others, each under its own protocol; never ranked with the rows above, and comparable only within a table. Struck out: a printed value that cannot be right, beside the corrected one."),
    el("div", { class: "choices" }, pick("protocol", unique(tables.flatMap(protocolsOf))), pick("dataset", unique(tables.map((table) => table.dataset)))), list));
}
