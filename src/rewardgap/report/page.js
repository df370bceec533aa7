"use strict";
// Sortable tables, a filter for long ones, the point that is shown, two texts side by side. The page is complete
// without this script.
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
      if (!head.hasAttribute("aria-sort")) head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const first = head.classList.contains("num") ? "descending" : "ascending";
        const next = now === "none" ? first : now === "ascending" ? "descending" : "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
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

  const point = document.getElementById("point");
  if (point) {
    const show = () => {
      for (const part of document.querySelectorAll(".point")) part.hidden = part.dataset.point !== point.value;
    };
    point.addEventListener("change", show);
    show();
  }

  const explorer = document.getElementById("explorer");
  if (explorer) {
    const [who, which, left, right] = explorer.querySelectorAll("select");
    const people = [...explorer.querySelectorAll(".person")];
    const cards = () => [...people[who.value].querySelectorAll("article")];
    const fill = (select, texts) => select.replaceChildren(...texts.map((text, at) => new Option(text, at)));
    const brief = (card) => card.querySelector(".reference").lastChild.textContent.trim().slice(0, 48);

    const show = () => {
      people.forEach((person, at) => {
        person.hidden = at !== Number(who.value);
        person.open = true;
      });
      cards().forEach((card, at) => {
        card.hidden = at !== Number(which.value);
        for (const text of card.querySelectorAll("[data-label]")) {
          const own = text.dataset.label;
          text.hidden = left.value !== "" && own !== left.value && own !== right.value;
          text.style.order = own === left.value ? "-1" : "0";
        }
      });
      right.disabled = left.value === "";
    };
    const turn = () => {
      fill(which, cards().map((card, at) => `${at + 1} of ${cards().length}: ${brief(card)}`));
      show();
    };
    fill(who, people.map((person) => person.querySelector("summary bdi").textContent));
    const { left: first, right: second } = explorer.dataset;
    left.value = first === "-1" ? "" : first;
    right.value = second === "-1" ? "" : second;
    who.addEventListener("change", turn);
    for (const select of [which, left, right]) select.addEventListener("change", show);
    turn();
  }
})();
