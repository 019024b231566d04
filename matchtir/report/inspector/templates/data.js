// What the page holds: the index of all rollouts, column by column, and their details in compressed chunks.

const CHUNKS_KEPT = 6;

const index = JSON.parse(byId("index").textContent);
const rows = index.rows;
const rowCount = rows.row.length;
const chunkCache = new Map();

/** The name of a rollout that stays the same when the page is written anew: its file and its row there. */
function keyOf(b) {
  return `${index.files[rows.file[b]]}:${rows.row[b]}`;
}

const placeOfKey = new Map(Array.from({ length: rowCount }, (_, b) => [keyOf(b), b]));

/** Rollouts that are compared with each other, in order of their place in the group. */
const siblingsOf = (() => {
  const groups = new Map();
  const name = (b) => JSON.stringify([rows.file[b], rows.group[b]]);
  for (let b = 0; b < rowCount; b++) {
    const key = name(b);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(b);
  }
  for (const group of groups.values()) group.sort((a, b) => rows.sample[a] - rows.sample[b]);
  return (b) => groups.get(name(b));
})();

/** The advantage that is tinted in full: all but the largest hundredth of the mean advantages are below. */
const fullTint = (() => {
  const sizes = rows.advantage.filter((value) => value).map(Math.abs).sort((a, b) => a - b);
  return sizes.length ? Math.max(sizes[Math.floor(0.99 * (sizes.length - 1))], 1e-6) : 1;
})();

async function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/** The detail of rollout b; chunks are unpacked when they are asked for, and the last few kept. */
async function detailOf(b) {
  const place = Math.floor(b / index.chunk);
  const kept = chunkCache.get(place) ?? unpack(document.getElementsByClassName("chunk")[place].textContent);
  chunkCache.delete(place);
  chunkCache.set(place, kept);
  if (chunkCache.size > CHUNKS_KEPT) chunkCache.delete(chunkCache.keys().next().value);
  return (await kept)[b % index.chunk];
}
