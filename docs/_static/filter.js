// A field above each table in a `filterable` container: rows that contain every word of it stay.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".filterable table")) {
    const rows = [...table.tBodies[0].rows];
    const field = document.createElement("input");
    field.type = "search";
    field.placeholder = "filter rows, such as: eva patch14";
    field.setAttribute("aria-label", "Filter the rows of the table");
    const count = document.createElement("span");
    count.setAttribute("role", "status");
    const filter = () => {
      const words = field.value.toLowerCase().split(/\s+/);
      let shown = 0;
      for (const row of rows) {
        row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
        shown += row.hidden ? 0 : 1;
      }
      count.textContent = `${shown} of ${rows.length} rows`;
    };
    field.addEventListener("input", filter);
    const line = document.createElement("p");
    line.className = "filter";
    line.append(field, count);
    (table.closest(".table-wrapper") ?? table).before(line);
    filter();
  }
});
