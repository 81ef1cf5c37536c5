// Numbers, times and rules as a person reads them. Pure: data in, text out.

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

/** 1536 becomes "1.5 KiB". */
export function size(bytes) {
  let value = Number(bytes) || 0;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : 1;
  return `${value.toFixed(digits).replace(/\.0$/, '')} ${UNITS[unit]}`;
}

/** Seconds as "8 s", "3 min", "2 h 5 min". */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return '';
  const whole = Math.max(1, Math.ceil(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.round(whole / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit' });
const day = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short', year: 'numeric' });

/** A local time: "Today, 14:30" or "1 Dec 2024, 14:30". */
export function localTime(text) {
  const then = new Date(text);
  if (Number.isNaN(then.getTime())) return String(text ?? '');
  const today = new Date();
  const yesterday = new Date(today.getFullYear(), today.getMonth(), today.getDate() - 1);
  const same = (a, b) => a.toDateString() === b.toDateString();
  const date = same(then, today) ? 'Today' : same(then, yesterday) ? 'Yesterday' : day.format(then);
  return `${date}, ${clock.format(then)}`;
}

/** The same moment in UTC, as the interface and the file names write it. */
export function utcTime(text) {
  const then = new Date(text);
  return Number.isNaN(then.getTime()) ? '' : `${then.toISOString().replace('T', ' ').replace(/\.\d+Z$/, '')} UTC`;
}

export const count = (number, one, many = `${one}s`) => `${Number(number).toLocaleString()} ${Number(number) === 1 ? one : many}`;

/** A name for a talk that starts now. */
export const freshSession = (now = new Date()) =>
  `session_${now.toISOString().slice(0, 19).replace(/[-:]/g, '').replace('T', '_')}`;

/** Null when `text` may name a session, else the sentence that says why not. */
export function sessionFault(text) {
  if (!text) return 'Give the session a name.';
  if (/\s/.test(text)) return 'Spaces are not allowed. Use - or _ instead.';
  const odd = text.match(/[^A-Za-z0-9._-]/u);
  if (odd) return `“${odd[0]}” is not allowed. Use letters A to Z, digits, and . _ -`;
  if (text.startsWith('.')) return 'A session can’t start with a dot.';
  if (text.length > 128) return `At most 128 characters; this has ${text.length}.`;
  if (text === 'upload') return '“upload” is reserved. Choose another name.';
  return null;
}

/** Null when `text` may be a recording type, else why not. */
export function kindFault(text) {
  if (!text) return 'Give a type, for example session.';
  if (!/^[a-z0-9_-]+$/.test(text)) return 'Use small letters a to z, digits, and _ -';
  return text.length > 32 ? 'At most 32 characters.' : null;
}

/** Null when `file` may be sent under `config`, else `{reason, certain}`. A type is only guessed from the
 *  name, so that refusal is not certain: the gateway looks at the bytes. */
export function fileFault(file, config) {
  if (file.size === 0) return { certain: true, reason: 'This file is empty, so there is nothing to keep.' };
  if (config.max_bytes && file.size > config.max_bytes) {
    return { certain: true, reason: `${size(file.size)} is over this gateway’s limit of ${size(config.max_bytes)}.` };
  }
  const type = file.type.split(';')[0].trim().toLowerCase();
  const fits = (pattern) => pattern === '*/*' || pattern === type || (pattern.endsWith('/*') && type.startsWith(pattern.slice(0, -1)));
  const allowed = config.allowed_types ?? [];
  if (!type || allowed.length === 0 || allowed.some((pattern) => fits(pattern.toLowerCase()))) return null;
  return { certain: false, reason: `This looks like ${type}. The gateway takes ${typeList(allowed)}.` };
}

/** ["audio/*", "video/*"] becomes "audio and video". */
export function typeList(patterns) {
  const names = patterns.map((pattern) => (pattern === '*/*' ? 'any type' : pattern.replace(/\/\*$/, '')));
  return names.length < 2 ? names.join('') : `${names.slice(0, -1).join(', ')} and ${names.at(-1)}`;
}

/** "video", "audio" or "file", for the icon and the player. */
export function mediaKind(contentType, filename = '') {
  const top = String(contentType ?? '').split('/')[0];
  if (top === 'video' || top === 'audio') return top;
  if (/\.(webm|mp4|m4v|mov|mkv|ogv)$/i.test(filename)) return 'video';
  return /\.(mp3|m4a|aac|ogg|oga|opus|wav|flac)$/i.test(filename) ? 'audio' : 'file';
}
