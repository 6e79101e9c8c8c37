"use strict";
(() => {
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));
  const key = (row, at) => {
    const cell = row.cells[at];
    const number = cell.dataset.value;
    return number === undefined ? cell.textContent.trim() : Number(number);
  };
  const missing = (value) => value === "" || value === "\u2013" || Number.isNaN(value);
  const order = (first, second) => {
    if (typeof first === "number" && typeof second === "number") return first - second;
    if (typeof first !== typeof second) return typeof first === "number" ? -1 : 1;
    return first.localeCompare(second, "en", { numeric: true });
  };

  // Sorting: the first press sorts ascending, the second descending; missing values are always last.
  for (const heading of all("thead th")) {
    heading.setAttribute("aria-sort", "none");
    heading.querySelector("button").addEventListener("click", () => {
      const table = heading.closest("table");
      const at = Array.from(heading.parentNode.children).indexOf(heading);
      const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      all("thead th", table).forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      const rows = Array.from(table.tBodies[0].rows).map((row) => [key(row, at), row]);
      rows.sort(([first], [second]) => missing(first) - missing(second) || direction * order(first, second));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  }

  // Filters: elements of other tasks and rows of other methods are hidden, and lines of other methods in figures are dimmed.
  const choose = { task: document.getElementById("choose-task"), row: document.getElementById("choose-row") };
  const apply = () => {
    const task = choose.task ? choose.task.value : "";
    const row = choose.row ? choose.row.value : "";
    for (const node of all("main [data-task]")) node.hidden = task !== "" && node.dataset.task !== task;
    for (const node of all("main tr[data-row]")) {
      const elsewhere = task !== "" && node.dataset.task !== undefined && node.dataset.task !== task;
      node.hidden = elsewhere || (row !== "" && node.dataset.row !== row);
    }
    for (const node of all("main svg [data-row]")) node.classList.toggle("dim", row !== "" && node.dataset.row !== row);
    const rows = all("main tbody tr");
    const seen = rows.filter((row) => !row.closest("[hidden]")).length;
    document.getElementById("shown").textContent = task === "" && row === "" ? "" : `${seen} of ${rows.length} lines shown`;
  };
  for (const select of Object.values(choose)) if (select) select.addEventListener("change", apply);
  const form = document.querySelector(".filters");
  if (form) form.addEventListener("submit", (event) => event.preventDefault());

  // Tooltips: the title of a mark, which browsers show after a delay, appears beside the pointer at once.
  const tip = document.getElementById("tip");
  for (const title of all("svg g > title")) title.parentNode.classList.add("tooltip");
  document.addEventListener("pointermove", (event) => {
    const mark = event.target.closest ? event.target.closest(".tooltip") : null;
    tip.hidden = mark === null;
    if (mark === null) return;
    if (mark.dataset.words === undefined) {
      const title = mark.querySelector("title");
      mark.dataset.words = title.textContent;
      mark.setAttribute("aria-label", title.textContent);
      title.remove();
    }
    tip.textContent = mark.dataset.words;
    const width = tip.offsetWidth;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, window.innerWidth - width - 8))}px`;
    tip.style.top = `${Math.min(event.clientY + 16, window.innerHeight - tip.offsetHeight - 8)}px`;
  });
})();
