// Sorting, searching and filtering the cases, opening their details, the theme. Without it the page is whole and ranked.
(() => {
  "use strict";
  const find = (id) => document.getElementById(id);

  // The theme: that of the system until the button is pressed; remembered where the browser allows it.
  const theme = find("theme");
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const named = () => { theme.textContent = dark() ? "Light" : "Dark"; };
  const stored = (value) => {
    try {
      if (value) localStorage.setItem("anomaly-theme", value);
      return localStorage.getItem("anomaly-theme");
    } catch { return null; } // a page from disk may have no storage
  };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
  theme.hidden = false;
  theme.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    stored(root.dataset.theme);
    named();
  });
  system.addEventListener("change", named);
  named();

  // A link to a case opens its details.
  const open = () => {
    const target = location.hash.startsWith("#case-") && find(location.hash.slice(1));
    if (!target) return;
    target.open = true;
    target.scrollIntoView();
    target.querySelector("summary").focus({ preventScroll: true });
  };
  addEventListener("hashchange", open);
  document.addEventListener("click", (event) => { // the same link twice changes no hash
    const link = event.target.closest?.("a[href^='#case-']");
    if (link && link.getAttribute("href") === location.hash) open();
  });
  open();

  const table = find("case-table");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const texts = rows.map((row) => row.textContent.toLowerCase().replace(/\s+/g, " "));
  const [search, status, field, least] = ["search", "status", "field", "least"].map((name) => find(`case-${name}`));
  const count = find("case-count");
  const heads = [...table.tHead.rows[0].cells];

  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const amount = Number(least?.value || 0);
    let shown = 0;
    rows.forEach((row, i) => {
      const keep = words.every((word) => texts[i].includes(word))
        && (!status?.value || row.dataset.status === status.value)
        && (!field?.value || row.dataset.fields.split(" ").includes(field.value))
        && (!amount || Number(row.querySelector(".money")?.dataset.v || 0) >= amount);
      row.hidden = !keep;
      if (keep) shown += 1;
    });
    count.textContent = shown === rows.length ? `${shown} cases` : `${shown} of ${rows.length} cases`;
  };

  const sort = (column) => {
    const head = heads[column];
    const now = head.getAttribute("aria-sort");
    const order = now ? (now === "ascending" ? "descending" : "ascending") : head.dataset.first;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
    const keyed = rows.map((row, i) => ({ row, i, text: key(row), value: Number(key(row) || "NaN") }));
    const numbers = rows.every((row) => row.cells[column].dataset.v !== undefined);
    keyed.sort((a, b) => {
      if (!numbers) return sign * a.text.localeCompare(b.text, "en", { numeric: true }) || a.i - b.i;
      const gaps = Number.isNaN(a.value) - Number.isNaN(b.value); // a missing value goes last, whatever the order
      return gaps || sign * (a.value - b.value) || a.i - b.i;
    });
    body.append(...keyed.map((item) => item.row));
  };

  heads.forEach((head, column) => {
    if (!head.dataset.first) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });
  heads[0].setAttribute("aria-sort", "ascending");
  find("case-tools").hidden = false;
  for (const tool of [search, status, field, least]) tool?.addEventListener("input", show);
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    search.value = "";
    show();
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input, select, textarea");
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || typing) return;
    event.preventDefault();
    search.focus();
  });
  show();
})();
