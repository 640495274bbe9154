// Sorting and searching the table of cases. Without this script the page is whole, ranked, and all there.
(() => {
  "use strict";
  const table = document.getElementById("case-table");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const texts = rows.map((row) => row.textContent.toLowerCase().replace(/\s+/g, " "));
  const search = document.getElementById("case-search");
  const count = document.getElementById("case-count");
  const heads = [...table.tHead.rows[0].cells];

  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      if (!row.hidden) shown += 1;
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
  document.getElementById("case-tools").hidden = false;
  search.addEventListener("input", show);
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    search.value = "";
    show();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target === search) return;
    event.preventDefault();
    search.focus();
  });
  show();
})();
