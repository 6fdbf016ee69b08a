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
  const PER_FRAME = 100;
  let turn = 0;

  const wordsOf = (row) => {
    let found = words.get(row);
    if (found === undefined) {
      const parts = row.querySelectorAll("h3 code, .text");
      found = Array.from(parts, (part) => part.textContent).join(" ").toLowerCase();
      words.set(row, found);
    }
    return found;
  };

  const named = (kind) => (new RegExp(`^#${kind}-(\\d+)$`).exec(location.hash) || [])[1];

  // So many rows a frame: laying all of them out at once would hold up the reader.
  const place = (mine, kept, at, next, then) => {
    for (let moved = 0; at < rows.length && moved < PER_FRAME; at += 1) {
      const row = rows[at];
      if (row === next) next = next.nextElementSibling;
      else list.insertBefore(row, next);
      moved += kept.has(row);
      if (row.hidden === kept.has(row)) row.hidden = !row.hidden;
    }
    if (at < rows.length) {
      requestAnimationFrame(() => mine === turn && place(mine, kept, at, next, then));
    } else {
      list.ariaBusy = "false";
      then();
    }
  };

  const show = (then = () => {}) => {
    const asked = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = label ? label.value : "";
    const latent = named("latent");
    const kept = new Set(rows.filter((row) => {
      const { latents, label: own } = row.dataset;
      return (!latent || latents.split(" ").includes(latent))
        && (!wanted || `=${own}` === wanted)
        && asked.every((word) => wordsOf(row).includes(word));
    }));
    for (const row of rows) if (!row.hidden && !kept.has(row)) row.hidden = true;
    count.value = kept.size === rows.length ? `${kept.size} rows` : `${kept.size} of ${rows.length} rows`;
    if (latent) count.value += `, with latent ${latent}`;
    list.ariaBusy = "true";
    turn += 1;
    place(turn, kept, 0, list.firstElementChild, then);
  };

  const sort = () => {
    const [key, sign] = order.value.split(" ");
    rows.sort((a, b) => sign * (a.dataset[key] - b.dataset[key]) || a.dataset.rank - b.dataset.rank);
  };

  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.addEventListener("input", (event) => {
    if (event.target === order) sort();
    show();
  });
  addEventListener("hashchange", () => {
    const rank = named("row");
    show(() => rank && document.getElementById(`row-${rank}`).scrollIntoView());
  });
  tools.hidden = false;
  sort();
  show();
})();
