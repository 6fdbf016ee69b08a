"use strict";
// Finds, sorts and filters the selected rows. The latent to filter by is the one that the address names, so that
// links, the Back key and bookmarks work, and the page says the same without this script.
(() => {
  const tools = document.getElementById("tools");
  if (!tools) return;
  const { find, label, order, count } = tools.elements;
  const list = document.getElementById("list");
  const rows = Array.from(list.children);
  const words = new Map();

  const wordsOf = (row) => {
    let found = words.get(row);
    if (found === undefined) {
      const parts = row.querySelectorAll("h3 code, .text");
      found = Array.from(parts, (part) => part.textContent).join(" ").toLowerCase();
      words.set(row, found);
    }
    return found;
  };

  const filter = () => {
    const asked = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = label ? label.value : "";
    const latent = (/^#latent-(\d+)$/.exec(location.hash) || [])[1];
    let shown = 0;
    for (const row of rows) {
      const { latents, label: own } = row.dataset;
      const kept = (!latent || latents.split(" ").includes(latent))
        && (!wanted || `=${own}` === wanted)
        && asked.every((word) => wordsOf(row).includes(word));
      if (row.hidden === kept) row.hidden = !kept;
      shown += kept;
    }
    count.value = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
    if (latent) count.value += `, with latent ${latent}`;
  };

  const sort = () => {
    const [key, sign] = order.value.split(" ");
    rows.sort((a, b) => sign * (a.dataset[key] - b.dataset[key]) || a.dataset.rank - b.dataset.rank);
    for (const row of rows) list.appendChild(row);
  };

  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.addEventListener("input", (event) => (event.target === order ? sort() : filter()));
  addEventListener("hashchange", filter);
  tools.hidden = false;
  sort();
  filter();
})();
