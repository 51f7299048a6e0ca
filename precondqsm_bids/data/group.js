// Sorts the table of runs by the column whose heading is pressed, each run with its slices.
for (const table of document.querySelectorAll('table.sortable')) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = heading.querySelector('button');
    button.disabled = false;
    button.addEventListener('click', () => {
      const up = heading.getAttribute('aria-sort') !== 'ascending' && (
        column === 0 || heading.getAttribute('aria-sort') === 'descending');
      const key = (body) => body.rows[0].cells[column].dataset.sort;
      const order = (a, b) => key(a).localeCompare(key(b), 'en', { numeric: true });
      const bodies = [...table.tBodies].sort((a, b) => (up ? 1 : -1) * order(a, b));
      headings.forEach((other) => other.removeAttribute('aria-sort'));
      heading.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      table.append(...bodies);
    });
  });
}
