// One row of the list: a recording, or a session. Fills templates and says where each copy is; what a
// button does is handed in.

import { address } from './api.js';
import { fromTemplate, icon, make, setName, setText } from './dom.js';
import { count, localTime, mediaKind, size, utcTime } from './words.js';

const SPRITE = './assets/icons.svg';
const TYPE_WORDS = { video: 'Video', audio: 'Audio', file: 'File' };
const PROMISES = {
  local: 'Written to this gateway’s disk and flushed. It survives a restart and a power cut here.',
  cloud: 'Supabase confirmed that it has this recording.',
  cloud_verified: 'Supabase has it, and its copy was compared with the original in size and content.',
};

let ids = 0;

/** `actions`: `play(recording, button)`, `copy`, `remove`, `tryAgain`, each `(recording, button)`. `cloudInUse()` tells
 *  whether local recordings have a cloud to wait for. */
export function recordingRow(session, { actions, cloudInUse }) {
  const { element, parts } = fromTemplate('recording-row');
  let recording = null;
  let shown = '';

  parts.about.id = `about-${(ids += 1)}`;
  parts.places.setAttribute('aria-controls', parts.about.id);
  parts.places.addEventListener('click', () => {
    parts.about.hidden = !parts.about.hidden;
    parts.places.setAttribute('aria-expanded', String(!parts.about.hidden));
  });
  parts.play.addEventListener('click', () => actions.play(recording, parts.play));
  parts.copy.addEventListener('click', () => actions.copy(recording, parts.copy));
  parts.again.addEventListener('click', () => actions.tryAgain(recording, parts.again));
  parts.delete.addEventListener('click', () => actions.remove(recording, parts.delete));

  function update(item) {
    recording = item;
    setText(parts.time, localTime(item.upload_time)); // “Today” becomes “Yesterday” without a change of the item
    const now = JSON.stringify([item, cloudInUse()]);
    if (now === shown) return;
    shown = now;
    fill(element, parts, session, item, cloudInUse());
  }
  return { element, update };
}

function fill(element, parts, session, item, cloudInUse) {
  const kind = mediaKind(item.content_type, item.filename);
  const title = item.original_filename || item.filename;
  element.dataset.filename = item.filename;

  const picture = parts.type.querySelector('svg');
  picture.setAttribute('aria-label', TYPE_WORDS[kind]);
  picture.querySelector('use').setAttribute('href', `${SPRITE}#${kind}`);
  setName(parts.title, title);
  setName(parts.stored, item.filename);
  parts.stored.hidden = title === item.filename;
  setText(parts.size, size(item.file_size));
  parts.time.dateTime = item.upload_time ?? '';
  parts.time.title = utcTime(item.upload_time);

  for (const [part, words] of [['play', 'Play'], ['download', 'Download'], ['copy', 'Copy the address of'], ['delete', 'Delete']]) {
    parts[part].setAttribute('aria-label', `${words} ${title}`);
    parts[part].title = part === 'copy' ? 'Copy address' : words;
  }
  const focused = document.activeElement === parts.again;
  parts.again.hidden = !item.parked_reason;
  if (focused && parts.again.hidden) parts.places.focus();
  parts.again.setAttribute('aria-label', `Try again to send ${title} to the cloud`);
  parts.play.hidden = kind === 'file';
  parts.download.href = address.save(session, item.filename);
  parts.download.download = item.filename;

  const place = whereabouts(item, cloudInUse);
  parts.places.replaceChildren(...place.chips, icon('more'));
  parts.places.lastChild.classList.add('chevron');
  parts.places.title = place.promise;
  parts.places.setAttribute('aria-label', `Where ${title} is: ${place.words.join(', ')}. Details`);
  setText(parts.promise, place.promise);
  parts.details.replaceChildren(...details(item));
}

/** Where the copies are, as chips, words and one sentence about what may be relied upon. */
function whereabouts(item, cloudInUse) {
  const stores = item.stores?.length ? item.stores : [item.storage_type];
  const chips = [];
  const words = [];
  const chip = (name, picture, text) => {
    chips.push(make('span', { className: `chip ${name}` }, icon(picture), text));
    words.push(text);
  };
  const cloud = stores.some((store) => store && store !== 'local');
  if (cloud) chip('cloud', 'cloud', item.durability === 'cloud_verified' ? 'Cloud, verified' : 'Cloud');
  if (stores.includes('local')) chip('local', 'disk', 'Local');

  let promise = PROMISES[item.durability] ?? PROMISES[cloud ? 'cloud' : 'local'];
  if (item.parked_reason) {
    chip('parked', 'parked', 'Parked');
    promise += ` It stays here and is not sent to the cloud: ${item.parked_reason}`;
  } else if (!cloud && cloudInUse) {
    chip('waiting', 'clock', 'Waiting for cloud');
    promise += ' It moves to the cloud by itself as soon as that can be reached.';
  }
  return { chips, words, promise };
}

function details(item) {
  const facts = [
    ['Uploaded', utcTime(item.upload_time)],
    ['Type', item.content_type],
    ['Size', `${Number(item.file_size).toLocaleString()} bytes`],
    ['Path', item.file_path],
    ['Bucket', item.bucket],
    ['SHA-256', item.sha256],
  ];
  return facts.filter(([, value]) => value).map(([name, value]) => {
    const told = make('dd');
    setName(told, String(value));
    return make('div', {}, make('dt', {}, name), told);
  });
}

/** A session in the list of all sessions; the whole row is a link. */
export function sessionRow() {
  const { element, parts } = fromTemplate('session-row');
  function update(item) {
    parts.open.href = `#s=${encodeURIComponent(item.session_id)}`;
    setName(parts.title, item.session_id);
    setText(parts.count, count(item.count, 'recording'));
    setText(parts.size, size(item.bytes));
    setText(parts.time, localTime(item.newest));
    parts.time.dateTime = item.newest ?? '';
    parts.time.title = utcTime(item.newest);
  }
  return { element, update };
}
