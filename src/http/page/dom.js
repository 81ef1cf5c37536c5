// The few things every module does with the document. Names and messages are other people's text:
// they only ever go in through textContent, so nothing here takes markup.

export const byId = (id) => document.getElementById(id);

/** A copy of a template's only element, and its `data-part` elements by name. */
export function fromTemplate(id) {
  const element = byId(id).content.firstElementChild.cloneNode(true);
  const parts = {};
  for (const part of element.querySelectorAll('[data-part]')) parts[part.dataset.part] = part;
  return { element, parts };
}

/** `make('span', {className: 'chip'}, 'text', otherElement)` */
export function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

/** A decorative icon out of the sprite. */
export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  use.setAttribute('href', `./assets/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/** Sets text only when it differs, so that a refresh doesn't disturb a selection. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Sets a name, with places to break a long one where a reader would. */
export function setName(element, name) {
  if (element.textContent === name) return;
  const pieces = (word) => (word.length < 24 ? [word] : word.match(/\.?[^._-]*[_-]*/g).filter(Boolean).flatMap((piece) => [piece, make('wbr')]));
  element.replaceChildren(...name.split(/(\s+)/).flatMap(pieces));
}

/** Says something to people who can't see the page. */
export function announce(text) {
  const live = byId('live');
  // A repeated sentence is only read again when the text changes.
  live.textContent = live.textContent === text ? `${text}\u00a0` : text;
}

/** Puts text on the clipboard and says so on `button` for a moment. */
export async function copyFrom(button, text, said = 'Copied') {
  const done = await toClipboard(text);
  const label = done ? said : 'Copying was refused';
  announce(done ? `${said}: ${text}` : label);
  button.dataset.flash = label;
  clearTimeout(Number(button.dataset.timer));
  button.dataset.timer = setTimeout(() => delete button.dataset.flash, 1800);
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Plain http on another machine has no clipboard interface: the old way still works there.
    const field = make('textarea', { value: text, className: 'unseen', readOnly: true });
    const before = document.activeElement;
    (document.querySelector('dialog[open]') ?? document.body).append(field);
    field.select();
    const done = document.execCommand('copy');
    field.remove();
    before?.focus();
    return done;
  }
}
