// Truth above reconstructions: a column a test image, a row a system; the ceiling next to the truth, floors last.
const imageKey = (item) => `${item.subject}-${item.stimulus}`;

// Rows of a table in the gallery's order.
function galleryRows(table, items) {
  const of = (...roles) => table.rows.filter((row) => roles.includes(row.role) && items.some((item) => item.images[row.record_id]));
  return [...of("ceiling"), ...of("system"), ...of("oracle"), ...of("leaky"), ...of("floor")];
}

function galleryItems(table, subject) {
  return gallery.items.filter((item) => table.subjects.includes(item.subject) && (subject === "all" || String(item.subject) === subject)
    && table.rows.some((row) => item.images[row.record_id]));
}

function drawGallery(table, state) {
  const items = galleryItems(table, state.subject);
  if (!items.length) return section("gallery");
  const open = (item) => ({ on: { click: () => showImage(item) }, "data-image": imageKey(item) });
  const titles = items.map((item) => el("button", { type: "button", class: "head", id: `image-${imageKey(item)}`, "data-tip": item.caption || null, ...open(item) },
    `S${item.subject}`, el("span", { class: "sub" }, `image ${item.stimulus}`)));
  const truth = items.map((item) => el("img", { class: "truth", src: item.truth, alt: item.caption || `test image ${item.stimulus}`, "data-tip": item.caption || null, ...open(item) }));
  const lines = galleryRows(table, items).flatMap((row) => [el("span", { class: `who ${row.role}` }, row.name), ...items.map((item) => {
    const name = `${row.name}, subject ${item.subject}, image ${item.stimulus}`;
    return item.images[row.record_id] ? el("img", { src: item.images[row.record_id], alt: name, "data-tip": name, ...open(item) }) : el("span", { class: "none" }, DASH);
  })]);
  const grid = el("div", { class: "pictures" }, el("span", { class: "who" }), titles, el("span", { class: "who system" }, "seen"), truth, lines);
  grid.style.gridTemplateColumns = `var(--who) repeat(${items.length}, 104px)`;
  section("gallery", el("h2", {}, "Seen and reconstructed"),
    el("p", { class: "note" }, "Each column is one test image: what the subject saw, and what was reconstructed. Images are not chosen by score. Open a column for its pictures in large and its own scores."),
    el("div", { class: "card scroll" }, grid));
}
