(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const run = read("history"), view = read("view");
  const root = document.getElementById("player"), find = (what) => root.querySelector(what);
  const slider = find("input"), button = find("button"), choice = find("select");
  const last = run.epochs.length - 1;

  // What can be shown: values by allocation and matrix, null where there are none.
  const perSize = (counts) =>
    counts.map((row) => row.map((n, i) => (n === null ? null : n / run.sizes[i])));
  const shown = {
    "density (weights that take part, % of the matrix)":
      { values: perSize(run.nonzero), share: true, low: 0, high: 1 },
  };
  if (run.entered) {
    shown["entered since the allocation before, % of the matrix"] =
      { values: perSize(run.entered), share: true, low: 0 };
    shown["left since the allocation before, % of the matrix"] =
      { values: perSize(run.left), share: true, low: 0 };
  }
  if (run.norm)
    shown["Frobenius norm of the delta (log colours)"] = { values: run.norm, log: true };
  if (run.score) shown["importance (log colours)"] = { values: run.score, log: true };
  for (const name of Object.keys(shown)) choice.add(new Option(name));

  // The range of the colours, over all allocations, so that they can be compared.
  for (const what of Object.values(shown)) {
    let low = Infinity, high = -Infinity;
    for (const row of what.values) for (const v of row) {
      if (v === null || (what.log && v <= 0)) continue;
      low = Math.min(low, v); high = Math.max(high, v);
    }
    what.low = what.low ?? (low === Infinity ? 1 : low);
    what.high = what.high ?? (high === -Infinity ? 1 : high);
  }

  // The cells, made once.
  const add = (parent, tag, text = "") => {
    const node = parent.appendChild(document.createElement(tag));
    node.textContent = text;
    return node;
  };
  const head = add(find("thead"), "tr");
  add(head, "th", "block");
  for (const kind of view.kinds) add(head, "th", kind);
  const table = view.blocks.map((block) => {
    const row = add(find("tbody"), "tr");
    add(row, "th", block);
    return view.kinds.map(() => add(row, "td"));
  });
  const cells = run.names.map((name, i) => {
    const cell = table[view.rows[i]][view.columns[i]];
    cell.title = name;
    return cell;
  });

  const position = (v, what) => {
    const f = what.log ? (x) => Math.log(Math.max(x, what.low)) : (x) => x;
    const span = f(what.high) - f(what.low);
    return span > 0 ? Math.min(1, Math.max(0, (f(v) - f(what.low)) / span)) : 0;
  };
  const text = (v, what) => {
    if (v === null) return "";
    const x = what.share ? 100 * v : v;
    if (x === 0 || (what.share && x >= 99.5)) return x.toFixed(0);
    return x < 1e-3 ? x.toExponential(1) : String(Number(x.toPrecision(2)));
  };
  const count = (n) => n.toLocaleString("en");
  const show = () => {
    const t = Number(slider.value), what = shown[choice.value];
    cells.forEach((cell, i) => {
      const v = what.values[t][i];
      const at = v === null ? 0 : position(v, what);
      cell.textContent = text(v, what);
      const colour = view.colours[Math.round(at * (view.colours.length - 1))];
      cell.style.background = v === null ? "#f0f0f0" : colour;
      cell.style.color = v !== null && at < 0.5 ? "#fff" : "#000";
    });
    const total = run.sizes.reduce((a, b) => a + b, 0);
    const nothing = what.values[t].every((v) => v === null);
    find(".state").textContent =
      `Epoch ${run.epochs[t]} (last: ${run.epochs[last]}), iteration ${count(run.iters[t])}: ` +
      `${count(run.budget[t])} weights in force, ${(100 * run.budget[t] / total).toFixed(1)} %.` +
      (nothing ? " Nothing of this is known here." : "");
    find(".low").textContent = text(what.low, what) + (what.share ? " %" : "");
    find(".high").textContent = text(what.high, what) + (what.share ? " %" : "");
  };

  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  const step = () => {
    if (Number(slider.value) < last) { slider.value = Number(slider.value) + 1; show(); }
    if (Number(slider.value) >= last) stop();
  };
  button.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (Number(slider.value) >= last) { slider.value = 0; show(); }
    if (last === 0) return;
    button.textContent = "Pause";
    timer = setInterval(step, Math.max(80, Math.min(700, 15000 / (last + 1))));
  });
  slider.addEventListener("input", () => { if (timer !== null) stop(); show(); });
  choice.addEventListener("change", show);
  find(".scale i").style.background = `linear-gradient(to right, ${view.colours.join(",")})`;
  slider.max = last;
  slider.value = last;
  show();
})();
