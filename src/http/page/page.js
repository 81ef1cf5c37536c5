// The page's start: the session and type fields, the address bar, files chosen or dropped. Everything else
// is in the modules below; they don't know each other's elements.

import { api } from './api.js';
import { startCloudward } from './cloudward.js';
import { startPlayer } from './dialogs.js';
import { byId, setText } from './dom.js';
import { startHealth } from './health.js';
import { startLive } from './live.js';
import { setCloud, showNothing, showSession, showSessions, startShelf, touched } from './shelf.js';
import { enqueue, setLimits, startUploads } from './uploads.js';
import { freshSession, kindFault, sessionFault, size, typeList } from './words.js';

const TYPING_PAUSE_MS = 350;
const session = byId('session');
const kind = byId('kind');
const notes = new Map([session, kind].map((field) => [field, byId(`${field.id}-note`).textContent]));
let typing;
let listed;

// A browser may refuse storage altogether; the page works without.
const memory = {
  get(name) { try { return localStorage.getItem(`gateway.${name}`); } catch { return null; } },
  set(name, value) { try { localStorage.setItem(`gateway.${name}`, value); } catch { /* not remembered */ } },
};

/** Shows a field's fault, or its usual note; true when the value is fine. */
function judge(field, fault) {
  const note = byId(`${field.id}-note`);
  field.setAttribute('aria-invalid', String(Boolean(fault)));
  note.classList.toggle('fault', Boolean(fault));
  setText(note, fault ?? notes.get(field));
  return !fault;
}
const sessionIsFine = () => judge(session, sessionFault(session.value));
const kindIsFine = () => judge(kind, kindFault(kind.value));

/** Shows what the address says: `#s=SESSION` or `#sessions`. */
function follow() {
  if (location.hash === '#sessions') {
    listed = null;
    mark('tab-sessions');
    return showSessions();
  }
  const asked = location.hash.match(/^#s=(.*)$/)?.[1];
  if (asked) session.value = decoded(asked);
  listSession();
}

const decoded = (text) => { try { return decodeURIComponent(text); } catch { return text; } };

function listSession() {
  mark('tab-session');
  const name = session.value;
  if (!sessionIsFine()) {
    listed = null;
    return showNothing('No session to show', 'Correct the session’s name, or look at all sessions.');
  }
  memory.set('session', name);
  // Not a new entry: typing a name must not fill the history.
  history.replaceState(null, '', `#s=${encodeURIComponent(name)}`);
  byId('tab-session').href = location.hash;
  document.title = `${name} · Recording Gateway`;
  if (listed !== name) showSession(name);
  listed = name;
}

function mark(id) {
  for (const tab of ['tab-session', 'tab-sessions']) {
    if (tab === id) byId(tab).setAttribute('aria-current', 'page');
    else byId(tab).removeAttribute('aria-current');
  }
  if (id === 'tab-sessions') document.title = 'All sessions · Recording Gateway';
}

function send(files) {
  const fine = [sessionIsFine(), kindIsFine()];
  if (fine.includes(false)) return (fine[0] ? kind : session).focus();
  clearTimeout(typing);
  listSession();
  enqueue(files, session.value, kind.value);
}

function startFields() {
  session.value = memory.get('session') || freshSession();
  kind.value = memory.get('kind') || 'session';
  session.addEventListener('input', () => {
    sessionIsFine();
    clearTimeout(typing);
    typing = setTimeout(listSession, TYPING_PAUSE_MS);
  });
  kind.addEventListener('input', () => kindIsFine() && memory.set('kind', kind.value));
  byId('session-new').addEventListener('click', () => {
    clearTimeout(typing);
    session.value = freshSession();
    listSession();
    session.focus();
    session.select();
  });
  byId('target').addEventListener('submit', (event) => {
    event.preventDefault();
    clearTimeout(typing);
    listSession();
  });
}

function startFiles() {
  const chooser = byId('files');
  chooser.addEventListener('change', () => {
    send([...chooser.files]);
    chooser.value = ''; // so that the same file can be chosen again
  });
  const carriesFiles = (event) => event.dataTransfer?.types.includes('Files');
  let depth = 0;
  const hover = (on) => document.body.classList.toggle('dropping', on);
  addEventListener('dragenter', (event) => { if (carriesFiles(event)) hover((depth += 1) > 0); });
  addEventListener('dragleave', (event) => { if (carriesFiles(event)) hover((depth = Math.max(0, depth - 1)) > 0); });
  addEventListener('dragover', (event) => carriesFiles(event) && event.preventDefault());
  addEventListener('drop', (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    hover((depth = 0) > 0);
    // A folder can't be sent as a file; the others with it can.
    const isFolder = (item) => item.webkitGetAsEntry?.()?.isDirectory;
    send([...event.dataTransfer.items].filter((item) => item.kind === 'file' && !isFolder(item)).map((item) => item.getAsFile()).filter(Boolean));
  });
}

async function readConfig() {
  try {
    const config = await api.config();
    setLimits(config);
    setCloud(config.cloud_configured !== false);
    const types = typeList(config.allowed_types ?? []);
    const limit = config.max_bytes ? `, up to ${size(config.max_bytes)} each` : '';
    setText(byId('limits'), `${types ? types[0].toUpperCase() + types.slice(1) : 'Any type'}${limit}`);
    setText(byId('version'), config.version ? `Version ${config.version}` : '');
    return config;
  } catch {
    return {}; // nothing can be checked here, so the gateway checks alone
  }
}

startFields();
startFiles();
startPlayer();
startShelf();
startUploads({ stored: touched });
addEventListener('hashchange', follow);
// The address is the session's, so the skip link must not write into it.
byId('skip').addEventListener('click', (event) => {
  event.preventDefault();
  byId('recordings').focus();
});
follow();
let config = {};
startHealth(() => config.cloud_configured);
startCloudward();
startLive();
config = await readConfig();
