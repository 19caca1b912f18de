// One image in large: truth, every row's picture, its scores, and where these lie among all test images of the subject.
// The address keeps which image is open (#image=SUBJECT-STIMULUS), so that it can be linked and the back key closes it.
const dialog = document.getElementById("image");
const ordinal = (n) => `${n}${["th", "st", "nd", "rd"][n % 100 > 10 && n % 100 < 14 ? 0 : n % 10] ?? "th"}`;

// Share of the subject's other images that are worse, ties counted one half: 1 is the best of all.
const standing = (score) => (score.of < 2 ? null : (score.of - score.rank - score.tied / 2) / (score.of - 1));

function placeMark(score) {
  const width = 64, at = 4 + (width - 8) * (standing(score) ?? 0.5);
  return svg("svg", { width, height: 10, "aria-hidden": "true" },
    svg("line", { x1: 0, x2: width, y1: 5, y2: 5, stroke: "var(--track)", "stroke-width": 4, "stroke-linecap": "round" }),
    svg("circle", { cx: at, cy: 5, r: 4, fill: "var(--accent)" }));
}

function scoreCell(score, column, row) {
  const whole = row.metrics[column.name];
  if (!score) return el("td", { "data-tip": `${column.label}: ${whole.value === null ? whole.status : "no value of single images"}` }, DASH);
  const tied = score.tied ? `, tied with ${plural(score.tied, "other", "others")}` : "";
  const tip = `${row.name}: ${column.label} ${number(score.value, column)}\n${ordinal(score.rank)} best of the subject's ${score.of} test images${tied}`;
  return el("td", { "data-tip": tip }, number(score.value, column), placeMark(score),
    el("span", { class: "sub" }, `${score.tied ? "=" : ""}${ordinal(score.rank)} of ${score.of}`));
}

// In words how usual the picture is for the system: the median over metrics of its standing.
function typical(scores) {
  const places = Object.values(scores).map(standing).filter((place) => place !== null).sort((a, b) => a - b);
  if (!places.length) return el("td", { class: "words" }, DASH);
  const middle = (places[Math.floor((places.length - 1) / 2)] + places[Math.ceil((places.length - 1) / 2)]) / 2;
  const word = middle >= 0.75 ? "one of its better" : middle <= 0.25 ? "one of its worse" : "typical";
  return el("td", { class: "words" }, word, el("span", { class: "sub" }, `better than ${(100 * middle).toFixed(0)}%`));
}

function imageScores(item, table, rows) {
  const columns = table.protocol.metrics;
  const line = (row) => {
    const scores = item.scores[row.record_id] ?? {};
    const own = Object.fromEntries(columns.filter((column) => scores[column.name]).map((column) => [column.name, scores[column.name]]));
    return el("tr", { class: row.role, "data-record": row.record_id }, el("th", { scope: "row" }, row.name),
      typical(own), columns.map((column) => scoreCell(own[column.name], column, row)));
  };
  const titles = columns.map((column) => el("th", { scope: "col" }, `${column.label} ${arrow(column)}`));
  return el("div", { class: "card scroll" }, el("table", { id: "image-scores" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "name" }, "row"), el("th", { scope: "col", class: "name" }, "for this row"), titles)),
    el("tbody", {}, rows.map(line))));
}

function figure(source, name, role, caption) {
  return el("figure", { class: role }, el("img", { src: source, alt: name }), el("figcaption", {}, caption));
}

function fillImage(item, table) {
  const items = galleryItems(table, state.subject), here = items.findIndex((other) => imageKey(other) === imageKey(item));
  const rows = galleryRows(table, [item]);
  const step = (by, id, label, sign) => el("button", { type: "button", id, "aria-label": label, disabled: items[here + by] ? null : "", on: { click: () => showImage(items[here + by]) } }, sign);
  dialog.replaceChildren(
    el("div", { class: "bar" }, el("h2", { id: "image-title" }, `Subject ${item.subject}, image ${item.stimulus}`),
      step(-1, "image-before", "image before", "\u2190"), step(1, "image-after", "next image", "\u2192"),
      el("button", { type: "button", id: "image-close", "aria-label": "close", on: { click: () => dialog.close() } }, "\u00d7")),
    el("p", { class: "note" }, item.caption || "No caption."),
    el("div", { class: "figures" }, figure(item.truth, `seen by subject ${item.subject}`, "truth", "seen"),
      rows.map((row) => figure(item.images[row.record_id], `${row.name}, image ${item.stimulus}`, row.role, row.name))),
    el("p", { class: "note" }, "Scores of this image under the chosen protocol. Dots and ranks: its place among all test images that the row was scored on in this subject, right and 1st the best, = where shared. A dash: the metric was not computed, or has no value of single images."),
    imageScores(item, table, rows));
}

// Opens through the address, which is where the state lives.
function showImage(item) {
  const hash = `#image=${imageKey(item)}`;
  if (location.hash === hash) openLinked();
  else if (dialog.open) { history.replaceState(null, "", hash); openLinked(); } else location.hash = hash;
}

function openLinked() {
  const asked = /^#image=(\d+-\d+)$/.exec(location.hash);
  const item = asked && gallery.items.find((other) => imageKey(other) === asked[1]);
  const shows = (table) => table && galleryItems(table, "all").includes(item);
  const table = item && [current(), ...board.tables].find(shows);
  if (!table) return dialog.open ? dialog.close() : undefined;
  if (table.id !== state.table || (state.subject !== "all" && state.subject !== String(item.subject))) {
    toTable([table]);
    redraw();
  }
  const focused = dialog.open ? document.activeElement?.id : null;
  // The dialog hands focus back to what had it: the column's head, also after a click on a picture or a link.
  if (!dialog.open) document.getElementById(`image-${imageKey(item)}`)?.focus({ preventScroll: true });
  fillImage(item, table);
  if (!dialog.open) dialog.showModal();
  const wanted = document.getElementById(focused ?? "image-close");
  (wanted && !wanted.disabled ? wanted : document.getElementById("image-close")).focus();
}

function closeImage() {
  const asked = /^#image=(\d+-\d+)$/.exec(location.hash);
  dialog.replaceChildren();
  if (!asked) return;
  history.replaceState(null, "", location.pathname + location.search);
  document.getElementById(`image-${asked[1]}`)?.focus({ preventScroll: true });
}

function arrowKeys(event) {
  const id = { ArrowLeft: "image-before", ArrowRight: "image-after" }[event.key];
  if (id && !event.altKey && !event.ctrlKey && !event.metaKey) document.getElementById(id)?.click();
}

dialog.addEventListener("close", closeImage);
dialog.addEventListener("keydown", arrowKeys);
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
window.addEventListener("hashchange", openLinked);
