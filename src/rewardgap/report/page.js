"use strict";
// Sortable tables and a filter for long ones. The page is complete without this script.
(() => {
  document.documentElement.classList.add("js");

  const keyOf = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.sort ?? cell.textContent.trim();
    if (!cell.classList.contains("num")) return text.toLowerCase();
    return text === "" ? null : Number(text);
  };
  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b));

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const first = head.classList.contains("num") ? "descending" : "ascending";
        const next = now === null ? first : now === "ascending" ? "descending" : "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        const rows = [...body.rows].map((row) => [keyOf(row, column), row]);
        // A missing number is neither high nor low: it stands last either way.
        rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b)));
        body.append(...rows.map(([, row]) => row));
      });
    });

    if (body.rows.length > 6) {
      const box = document.createElement("label");
      const field = document.createElement("input");
      const count = document.createElement("output");
      box.className = "filter";
      field.type = "search";
      box.append("Filter ", field, count);
      table.parentElement.before(box);
      field.addEventListener("input", () => {
        const wanted = field.value.toLowerCase().split(/\s+/).filter(Boolean);
        let shown = 0;
        for (const row of body.rows) {
          const text = row.cells[0].textContent.toLowerCase();
          row.hidden = !wanted.every((word) => text.includes(word));
          shown += row.hidden ? 0 : 1;
        }
        count.textContent = wanted.length ? `${shown} of ${body.rows.length}` : "";
      });
    }
  }
})();
