// What a row declares, what the audit noted, what it was fitted on and how well its latents are predicted.
function declaredText(step) {
  const value = (each) => {
    if (Array.isArray(each)) return each.join(", ");
    if (each !== null && typeof each === "object") return Object.entries(each).map(([name, weight]) => `${weight} ${name}`).join(" + ");
    return String(each);
  };
  const what = Object.entries(step.what).filter(([, each]) => each !== null).sort(([a], [b]) => (a < b ? -1 : 1));
  return `${step.kind} ${step.name}: ${what.map(([key, each]) => `${key} ${value(each)}`).join(", ")}`;
}

// Short marks beside the name for what a reader must not miss; the row's details say the rest.
function tagsOf(row) {
  const role = { ceiling: "ceiling", floor: "floor", leaky: "leaky, not ranked", oracle: "oracle selection, not ranked" }[row.role];
  const selects = row.declared.find((step) => step.kind === "select");
  const notes = row.leakage.filter((found) => !found.excludes).length;
  return [role, selects && row.role !== "oracle" ? `selected by ${selects.what.by}` : null,
    row.declared.some((step) => step.kind === "blend") ? "blended" : null, notes ? plural(notes, "note", "notes") : null].filter(Boolean);
}

function listed(title, lines) {
  return lines.length ? el("div", {}, el("h4", {}, title), el("ul", {}, lines.map((line) => el("li", {}, line)))) : null;
}

function stageText(stage) {
  const used = [["fitted on", stage.fitted_on], ["chosen on", stage.chosen_on], ["pretrained on", stage.pretrained_on]]
    .filter(([, names]) => names.length).map(([verb, names]) => `${verb} ${names.join(", ")}`);
  return [`${stage.name}: ${stage.encoder}`, `subjects: ${stage.subjects}`, stage.dataset ? `dataset ${stage.dataset}` : null, ...used,
    stage.normalise ? `betas z-scored by ${stage.normalise}` : null].filter(Boolean).join("; ");
}

// Correlation of predicted and true latents by head and subject, beside the noise ceiling where one is known.
function latentTable(row) {
  const scores = row.latents.filter((score) => score.name === "test correlation");
  if (!scores.length) return null;
  const heads = unique(scores.map((score) => score.head)), subjects = unique(scores.map((score) => score.subject)).sort((a, b) => a - b);
  const cell = (head, subject) => {
    const score = scores.find((each) => each.head === head && each.subject === subject);
    if (!score || score.value === null) return el("td", {}, DASH);
    const share = score.relative === null ? "no noise ceiling" : `${(100 * score.relative).toFixed(0)}% of ceiling ${score.ceiling.toFixed(3)}`;
    return el("td", {}, score.value.toFixed(3), el("span", { class: "sub" }, share));
  };
  return el("div", {}, el("h4", {}, "Latents: correlation over test images, against its noise ceiling"),
    el("div", { class: "scroll" }, el("table", { class: "latents" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "name" }, "head"), subjects.map((subject) => el("th", { scope: "col" }, `S${subject}`)))),
      el("tbody", {}, heads.map((head) => el("tr", {}, el("th", { scope: "row" }, head), subjects.map((subject) => cell(head, subject))))))));
}

function detailsOf(row) {
  const findings = (excludes) => row.leakage.filter((found) => found.excludes === excludes).map((found) => `${found.name}: ${found.finding}`);
  const facts = [`record ${row.record_id}, finished ${row.finished}, commit ${row.commit ?? DASH}`,
    `${row.data.betas}; ${row.data.voxelset} in ${row.data.space}`,
    ...(row.rank === null ? [] : [`rank ${row.rank}, 95% interval ${row.rank_interval.join(" to ")}; ${row.borda.toFixed(2)} Borda points`])];
  return el("div", { class: "facts" },
    listed("Why it is not ranked", findings(true)),
    listed("Notes of the leakage audit", findings(false)),
    listed("Declared steps", row.declared.map(declaredText)),
    listed("Why it is in the open division", row.division_reasons),
    listed("Stages", row.stages.map(stageText)),
    latentTable(row), listed("Record", facts));
}
