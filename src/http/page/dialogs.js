// The two dialogs: the question before something is destroyed, and the player.

import { address, api } from './api.js';
import { byId, make, setName } from './dom.js';
import { mediaKind, size } from './words.js';

// A recording without a length must be read to its end before the controls can seek; up to this size
// that is done unasked.
const MEASURE_BYTES = 64 * 2 ** 20;

/** Asks; true only for the destructive button. The focus starts on Cancel. */
export function ask({ title, name, text, confirm }) {
  const dialog = byId('question');
  byId('question-title').textContent = title;
  setName(byId('question-name'), name);
  byId('question-text').textContent = text;
  byId('question-confirm').textContent = confirm;
  dialog.returnValue = '';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true });
  });
}

export function startPlayer() {
  const dialog = byId('player');
  byId('player-close').addEventListener('click', () => dialog.close());
  dialog.addEventListener('click', (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop: everything inside has an element of its own
  });
  dialog.addEventListener('close', () => {
    const media = dialog.querySelector('video, audio');
    if (!media) return;
    // Dropping the element alone would let the browser go on loading.
    media.pause();
    media.removeAttribute('src');
    media.load();
    media.remove();
  });
}

export function play(session, recording) {
  const kind = mediaKind(recording.content_type, recording.filename) === 'audio' ? 'audio' : 'video';
  const note = byId('player-note');
  const media = make(kind, { controls: true, preload: 'metadata', src: address.content(session, recording.filename) });
  if (kind === 'video') media.playsInline = true;
  media.setAttribute('aria-label', recording.original_filename || recording.filename);
  note.textContent = '';
  byId('player-measure').hidden = true;
  setName(byId('player-title'), recording.original_filename || recording.filename);
  byId('player-stage').replaceChildren(media);
  byId('player-stage').dataset.kind = kind;
  media.addEventListener('loadedmetadata', () => findLength(media, recording.file_size, note), { once: true });
  media.addEventListener('error', () => explain(media, session, recording, note));
  byId('player').showModal();
  media.focus();
  media.play().catch(() => {}); // where starting by itself is not allowed, the controls are there
}

/** A browser's own live recording carries no length, so its controls can't seek. */
function findLength(media, bytes, note) {
  if (Number.isFinite(media.duration)) return;
  if (bytes <= MEASURE_BYTES) return measure(media, note);
  const button = byId('player-measure');
  note.textContent = `This recording does not say how long it is, so its controls can’t seek yet. Finding its end reads all ${size(bytes)}.`;
  button.hidden = false;
  button.onclick = () => {
    button.hidden = true;
    media.focus();
    measure(media, note);
  };
}

/** Jumping past the end makes the browser look for the end; then it starts from the beginning. */
function measure(media, note) {
  note.textContent = 'Measuring the length…';
  const settled = () => {
    media.removeEventListener('durationchange', look);
    media.removeEventListener('seeked', settled);
    note.textContent = '';
    media.currentTime = 0;
    media.play().catch(() => {});
  };
  const look = () => Number.isFinite(media.duration) && settled();
  media.addEventListener('durationchange', look);
  media.addEventListener('seeked', settled);
  media.currentTime = Number.MAX_SAFE_INTEGER;
}

async function explain(media, session, recording, note) {
  if (!media.isConnected || !media.hasAttribute('src')) return; // the dialog was closed
  const problem = await api.whyUnreadable(session, recording.filename);
  note.textContent = problem
    ? `${problem.detail}${problem.requestId ? ` Request ${problem.requestId}` : ''}`
    : `This browser can’t play ${recording.content_type || 'this format'}. Download it and use another player.`;
}
