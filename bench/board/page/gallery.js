// Truth above reconstructions: a column a test image, a row a system; the ceiling next to the truth, floors last.
function drawGallery(table, gallery, state) {
  const items = gallery.items.filter((item) => table.subjects.includes(item.subject)
    && (state.subject === "all" || String(item.subject) === state.subject)
    && table.rows.some((row) => item.images[row.record_id]));
  if (!items.length) return section("gallery");
  const of = (...roles) => table.rows.filter((row) => roles.includes(row.role) && items.some((item) => item.images[row.record_id]));
  const rows = [...of("ceiling"), ...of("system"), ...of("oracle"), ...of("leaky"), ...of("floor")];
  const titles = items.map((item) => el("span", { class: "head", "data-tip": item.caption || null }, `S${item.subject}`,
    el("span", { class: "sub" }, `image ${item.stimulus}`)));
  const truth = items.map((item) => el("img", { class: "truth", src: item.truth, alt: item.caption || `test image ${item.stimulus}`, "data-tip": item.caption || null }));
  const lines = rows.flatMap((row) => [el("span", { class: `who ${row.role}` }, row.name), ...items.map((item) => {
    const name = `${row.name}, subject ${item.subject}, image ${item.stimulus}`;
    return item.images[row.record_id] ? el("img", { src: item.images[row.record_id], alt: name, "data-tip": name }) : el("span", {}, DASH);
  })]);
  const grid = el("div", { class: "pictures" }, el("span", {}), titles, el("span", { class: "who system" }, "seen"), truth, lines);
  grid.style.gridTemplateColumns = `150px repeat(${items.length}, 104px)`;
  section("gallery", el("h2", {}, "Seen and reconstructed"),
    el("p", { class: "note" }, "Each column is one test image: what the subject saw, and what was reconstructed. Images are not chosen by score."),
    el("div", { class: "card scroll" }, grid));
}
