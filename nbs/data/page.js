window.dreamgym = window.dreamgym || {episode: 0, next: 1};
dreamgym.start = function (seed, actions = []) {
  if (window.jQuery) { jQuery.fx.off = true; }
  core.EPISODE_MAX_TIME = 86400000;
  core.endEpisode(0);
  Math.seedrandom(seed);
  dreamgym.episode += 1; dreamgym.next = 1;
  core.startEpisodeReal();
  return actions.reduce((report, action) => dreamgym.act(...action), dreamgym.report());
};
dreamgym.hidden = function (e) {
  if (['reward-display', 'sync-task-cover', 'click-canvas', 'query'].includes(e.id)) return true;
  if (['SCRIPT', 'STYLE', 'CANVAS', 'OPTION'].includes(e.tagName)) return true;
  const box = e.getBoundingClientRect(), style = getComputedStyle(e);
  if (style.visibility === 'hidden' || style.display === 'none') return true;
  return style.overflow === 'hidden' && (box.width === 0 || box.height === 0);
};
dreamgym.listens = function (e) {
  const events = window.jQuery && jQuery._data && jQuery._data(e, 'events');
  return Boolean(e.onclick || e.__onclick || (events && events.click));
};
dreamgym.native = e => ['INPUT', 'TEXTAREA', 'SELECT', 'BUTTON', 'A'].includes(e.tagName);
dreamgym.clickable = function (e) {
  if (dreamgym.native(e)) return true;
  if (!(dreamgym.listens(e) || getComputedStyle(e).cursor === 'pointer')) return false;
  return ![...e.querySelectorAll('*')].some(c => dreamgym.native(c) || dreamgym.listens(c));
};
dreamgym.clean = t => (t || '').replace(/\s+/g, ' ').trim();
dreamgym.reference = function (e) {
  if (e.dgEpisode !== dreamgym.episode) { e.dgEpisode = dreamgym.episode; e.dgReference = dreamgym.next++; }
  return e.dgReference;
};
dreamgym.icon = e => e.tagName === 'IMG' || getComputedStyle(e).content.startsWith('url(');
dreamgym.tag = function (e) {
  if (dreamgym.icon(e)) return 'icon';
  const type = (e.type || '').toLowerCase();
  if (e.tagName === 'INPUT') return ['checkbox', 'radio', 'password'].includes(type) ? type
    : ['button', 'submit'].includes(type) ? 'button' : 'input';
  if (e.tagName === 'A' && (e.closest('ul[role=tablist]'))) return 'tab';
  if (e.tagName === 'A' || e.classList.contains('alink')) return 'link';
  return ({H3: 'heading', LI: 'item', TEXTAREA: 'textarea', SELECT: 'select', BUTTON: 'button'})[e.tagName] || 'element';
};
dreamgym.label = function (e) {
  const label = e.closest('label') || (e.id && document.querySelector(`label[for="${e.id}"]`));
  if (label) return label;
  return e.nextSibling;
};
dreamgym.page = function () {
  const rows = [], used = new Set();
  const walk = function (node) {
    if (node instanceof Text) {
      const text = dreamgym.clean(node.data);
      if (text && !used.has(node)) rows.push({tag: 'text', text: text});
      return;
    }
    if (!(node instanceof Element) || dreamgym.hidden(node)) return;
    if (dreamgym.clickable(node)) {
      const box = node.getBoundingClientRect();  // a picture has no size before it is loaded
      if ((box.width === 0 || box.height === 0) && !dreamgym.icon(node)) return;
      const row = {id: dreamgym.reference(node), tag: dreamgym.tag(node)};
      dreamgym.elements[row.id] = node;
      if (['checkbox', 'radio'].includes(row.tag)) {
        const label = dreamgym.label(node);
        row.text = dreamgym.clean(label && label.textContent); row.on = node.checked;
        if (label) { used.add(label); (label.childNodes || []).forEach(c => used.add(c)); }
      } else if (row.tag === 'select') {
        row.text = dreamgym.clean(node.selectedOptions.length ? node.selectedOptions[0].text : '');
        row.options = [...node.options].map(o => dreamgym.clean(o.text));
      } else if (['input', 'password', 'textarea'].includes(row.tag)) row.text = node.value;
      else if (row.tag === 'icon') row.text = dreamgym.clean(node.alt || node.title || node.id || node.className);
      else row.text = dreamgym.clean(node.tagName === 'INPUT' ? node.value : node.innerText || node.title || node.getAttribute('aria-label'));
      if (row.text || row.tag !== 'element') rows.push(row);
      return;
    }
    node.childNodes.forEach(walk);
  };
  dreamgym.elements = {};
  walk(document.body);
  return rows;
};
dreamgym.act = function (kind, id, text) {
  const e = dreamgym.elements[id];
  if (kind === 'click') {
    e.click();
    if (e.focus) e.focus();
    return dreamgym.report();
  }
  if (e.focus) e.focus();
  if (kind === 'select') e.selectedIndex = [...e.options].findIndex(o => dreamgym.clean(o.text) === text);
  else e.value = text;
  for (const name of ['keydown', 'input', 'keyup', 'change']) e.dispatchEvent(new Event(name, {bubbles: true}));
  return dreamgym.report();
};
dreamgym.report = function () {
  const done = WOB_DONE_GLOBAL;
  let goal = core.getUtterance();
  if (typeof goal === 'object') goal = goal.utterance;
  return {done: done, raw: WOB_RAW_REWARD_GLOBAL, goal: goal, rows: done ? [] : dreamgym.page(), ready: WOB_TASK_READY};
};
