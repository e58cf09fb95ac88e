/* Below the points: the history of the hypervolume, and the environments of the records. */

function hypervolumeHistory(view) {
  const values = view.section.hypervolumeHistory;
  if (values.length < 2) return [];
  const drawn = node("div"),
    change = `hypervolume of size and quality from ${short(values[0])} to ${short(values.at(-1))}`;
  const block = node(
    "details",
    { class: "growth" },
    node("summary", {}, `Growth of the front: ${change} over ${values.length} points`),
    drawn,
  );
  const series = [
    { look: "pick-0", letter: "", name: "hypervolume", steps: values.map((_, index) => index + 1), values },
  ];
  block.addEventListener("toggle", () => {
    if (block.open)
      lines(drawn, series, {
        height: 220,
        titles: ["points finished", "hypervolume"],
        from: null,
        dots: values.length <= 40,
      });
  });
  return [block];
}

function environmentPanel(section) {
  const block = node("details", { open: section.environments.length > 1 });
  const kinds = new Set(section.environments.map((one) => JSON.stringify(one.hardware)));
  block.append(
    node(
      "summary",
      {},
      kinds.size > 1
        ? `Environment: ${kinds.size} kinds of hardware, so compare ratios and not milliseconds`
        : "Environment: hardware, versions, git, seeds",
    ),
  );
  for (const { records, seeds, kernels, hardware, versions, git } of section.environments) {
    const list = node("dl");
    const add = (name, text) => list.append(node("dt", {}, name), node("dd", {}, text));
    add("records", `${records}, seeds ${seeds.join(", ")}`);
    add("kernels", kernels.join(", "));
    for (const [name, fact] of Object.entries(hardware))
      if (fact !== null)
        add(
          name.replace("_gb", " (GB)").replace("_", " "),
          Array.isArray(fact) ? fact.join(", ") || "none" : String(fact),
        );
    add(
      "versions",
      Object.entries(versions)
        .map((pair) => pair.join(" "))
        .join(", "),
    );
    add("git", git ? `${git.commit.slice(0, 12)}${git.dirty ? ", with changes" : ""}` : "not in a repository");
    block.append(list);
  }
  return block;
}
