/* What stands below the points: how the front grew, and what everything ran on. */

function hypervolumeHistory(view) {
  const values = view.section.hypervolumeHistory;
  if (values.length < 2) return [];
  const drawn = node("div"),
    told = `hypervolume of size and quality kept from ${short(values[0])} to ${short(values.at(-1))}`;
  const block = node(
    "details",
    { class: "growth" },
    node("summary", {}, `Growth of the front: ${told} over ${values.length} points`),
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

function surroundings(section) {
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
    const add = (name, told) => list.append(node("dt", {}, name), node("dd", {}, told));
    add("records", `${records}, seeds ${seeds.join(", ")}`);
    add("kernels", kernels.join(", "));
    for (const [name, held] of Object.entries(hardware))
      if (held !== null)
        add(
          name.replace("_gb", " (GB)").replace("_", " "),
          Array.isArray(held) ? held.join(", ") || "none" : String(held),
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
