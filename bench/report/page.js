"use strict";
(() => {
const $ = (s, at = document) => at.querySelector(s), all = (s, at = document) => [...at.querySelectorAll(s)];
const facts = JSON.parse($("#data").textContent);
const make = (tag, text, cls) => { const e = document.createElement(tag); if (text !== undefined) e.textContent = text; if (cls) e.className = cls; return e; };
const table = $("#t-results"), rows = all("tbody tr", table), form = $("#filters");
for (const e of [form, $("#theme"), ...all(".tools")]) e.hidden = false;

// theme: auto, light, dark
const themes = ["auto", "light", "dark"], themeButton = $("#theme");
const setTheme = name => { if (name === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = name;
  themeButton.textContent = "Theme: " + name; };
let theme = "auto";
try { theme = localStorage.getItem("certbench-theme") || "auto"; } catch { /* private mode: no memory */ }
if (!themes.includes(theme)) theme = "auto";
setTheme(theme);
themeButton.addEventListener("click", () => { theme = themes[(themes.indexOf(theme) + 1) % 3]; setTheme(theme);
  try { localStorage.setItem("certbench-theme", theme); } catch { /* not kept */ } });

// text columns are left aligned
for (const t of all("table")) { const left = all("thead th", t).map((h, i) => h.classList.contains("t") ? i : -1).filter(i => i >= 0);
  for (const r of all("tbody tr:not(.block)", t)) for (const i of left) if (r.cells[i]) r.cells[i].classList.add("t"); }

// sorting: stable, missing last in both directions
const keyOf = cell => { if (!cell) return null; const v = cell.dataset.v, s = v !== undefined ? v : ($(".v, a", cell) || cell).textContent.trim();
  if (s === "\u2013" || s === "" || s === "n/a" || s === "!") return null;
  const n = Number(s.replace("\u2212", "-").replace("+", "")); return Number.isNaN(n) ? s.toLowerCase() : n; };
const sortBy = (t, column, dir) => {
  all("thead th", t).forEach((h, i) => { if (i === column) h.setAttribute("aria-sort", dir > 0 ? "ascending" : "descending"); else h.removeAttribute("aria-sort"); });
  for (const body of t.tBodies) {
    const mine = [...body.rows].filter(r => !r.classList.contains("block")).map((r, i) => [keyOf(r.cells[column]), i, r]);
    mine.sort((a, b) => { if (a[0] === null || b[0] === null) return (a[0] === null) - (b[0] === null) || a[1] - b[1];
      const x = a[0], y = b[0]; return (typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? -1 : 1) * dir || a[1] - b[1]; });
    body.append(...mine.map(m => m[2])); } };
for (const t of all("table")) all("thead th button", t).forEach((b, i) => b.addEventListener("click", () => {
  const h = b.parentElement, dir = h.getAttribute("aria-sort") === "descending" ? 1 : h.getAttribute("aria-sort") === "ascending" ? -1 : h.classList.contains("t") ? 1 : -1;
  sortBy(t, i, dir); if (t === table) { state.sort = heads[i]; state.dir = dir > 0 ? "up" : "down"; keep(); } }));

// filters, kept in the address so that a view can be sent
const heads = all("thead th button", table).map(b => b.textContent.replace(/ [\u2191\u2193]$/, ""));
const state = { sort: "", dir: "" }, groups = ["s", "k", "p", "c", "m"];
const chosen = () => Object.fromEntries(groups.map(g => [g, all(`input[name=${g}]:checked`, form).map(i => i.value)]));
const apply = () => { const want = chosen(), words = form.q.value.toLowerCase().split(/\s+/).filter(Boolean); let shown = 0;
  for (const r of rows) { const ok = groups.every(g => !want[g].length || want[g].includes(r.dataset[g] || "")) && words.every(w => r.textContent.toLowerCase().includes(w));
    r.hidden = !ok; shown += ok; }
  $("#count").textContent = `${shown} of ${rows.length} rows`; };
const keep = () => { const p = new URLSearchParams(), want = chosen();
  for (const g of groups) for (const v of want[g]) p.append(g, v);
  if (form.q.value) p.set("q", form.q.value);
  if (state.sort) { p.set("sort", state.sort); p.set("dir", state.dir); }
  try { history.replaceState(null, "", "#" + p); } catch { /* a sandbox may forbid it */ } };
const restore = () => { const text = location.hash.slice(1); if (!text.includes("=")) return;
  const p = new URLSearchParams(text);
  for (const i of all("input[type=checkbox]", form)) if (i.name) i.checked = p.getAll(i.name).includes(i.value);
  form.q.value = p.get("q") || "";
  const at = heads.indexOf(p.get("sort")); if (at >= 0) { state.sort = heads[at]; state.dir = p.get("dir") || "down"; sortBy(table, at, state.dir === "up" ? 1 : -1); }
  if (p.get("r")) show(p.get("r")); };
form.addEventListener("input", e => { if (e.target.name) { apply(); keep(); } });
form.addEventListener("reset", () => setTimeout(() => { apply(); keep(); }));
form.addEventListener("submit", e => e.preventDefault());

// columns
heads.forEach((h, i) => { const l = make("label"), c = make("input"); c.type = "checkbox"; c.checked = true; l.append(c, " " + h); $("#columns").append(l);
  c.addEventListener("change", () => { for (const r of [table.tHead.rows[0], ...rows]) r.cells[i].classList.toggle("off", !c.checked); }); });

// copy and download what is shown
const shownCells = () => [table.tHead.rows[0], ...[...table.tBodies[0].rows].filter(r => !r.hidden)].map(r => [...r.cells].filter(c => !c.classList.contains("off")).map(c => {
  const d = c.cloneNode(true); for (const x of all("small, .expand", d)) x.remove(); for (const x of all("sup", d)) if (x.textContent) x.textContent = "^" + x.textContent; return d.textContent.trim().replace(/\s+/g, " "); }));
const md = t => t.replace(/([|\\*`<>])/g, "\\$1").replace(/\^(\S+)$/, "<sup>$1</sup>");
const texMap = { "\\": "\\textbackslash{}", "\u2013": "--", "\u2212": "$-$", "\u2020": "$^\\dagger$", "\u2021": "$^\\ddagger$", "\u2191": "$\\uparrow$", "\u2193": "$\\downarrow$", "\u0394": "$\\Delta$", "\u00d7": "$\\times$", "\u2264": "$\\le$", "~": "\\textasciitilde{}" };
const tex = t => { const [a, b] = t.split("^"); const esc = s => s.replace(/[&%$#_{}]/g, "\\$&").replace(/[\\\u2013\u2212\u2020\u2021\u2191\u2193\u0394\u00d7\u2264~](?![&%$#_{}])/g, c => texMap[c]); return esc(a) + (b ? `\\textsuperscript{${b}}` : ""); };
const csv = t => { t = t.replace("\u2212", "-"); if (/^[=+\-@\t\r]/.test(t) && Number.isNaN(Number(t))) t = "'" + t; return /[",\n]/.test(t) ? `"${t.replace(/"/g, '""')}"` : t; };
const copy = async (text, button) => { let ok = true;
  try { await navigator.clipboard.writeText(text); } catch { const a = make("textarea"); a.value = text; document.body.append(a); a.select(); ok = document.execCommand("copy"); a.remove(); }
  const old = button.textContent; button.textContent = ok ? "Copied" : "Not copied"; setTimeout(() => { button.textContent = old; }, 1500); };
for (const b of all("[data-do]")) b.addEventListener("click", () => { const t = shownCells(), kind = b.dataset.do;
  if (kind === "md") copy([t[0], t[0].map(() => "---"), ...t.slice(1)].map(r => "| " + r.map(md).join(" | ") + " |").join("\n") + "\n", b);
  if (kind === "tex") copy(`\\begin{tabular}{@{}${"l".repeat(t[0].length)}@{}}\n\\toprule\n` + t.map((r, i) => r.map(tex).join(" & ") + " \\\\" + (i ? "" : "\n\\midrule")).join("\n") + "\n\\bottomrule\n\\end{tabular}\n", b);
  if (kind === "csv") { const a = make("a"); a.href = URL.createObjectURL(new Blob([t.map(r => r.map(csv).join(",")).join("\n") + "\n"], { type: "text/csv" })); a.download = "certbench.csv"; a.click(); } });

// how a number was made
const pop = $("#pop"); let from = null;
const entry = (dl, name, value) => { if (value === undefined || value === null || value === "") return; dl.append(make("dt", name)); const d = make("dd"); d.append(value instanceof Node ? value : String(value)); dl.append(d); };
const open = (title, ...parts) => { pop.replaceChildren(); const h = make("h2", title); h.id = "pop-title"; h.tabIndex = -1; const x = make("button", "Close", "close"); x.type = "button"; x.addEventListener("click", () => pop.hidePopover());
  pop.append(h, x, ...parts); if (!pop.matches(":popover-open")) pop.showPopover(); h.focus(); };
pop.addEventListener("toggle", e => { if (e.newState === "closed" && from) { from.focus(); from = null; } });
const withCopy = text => { const s = make("span"), b = make("button", "Copy"); b.type = "button"; b.addEventListener("click", () => copy(text, b)); s.append(make("code", text), " ", b); return s; };
const places = n => n >= 5000 ? 2 : n >= 500 ? 1 : 0; // as fmt.decimals
const show = ref => { const r = facts.records[ref], p = facts.published[ref], dl = make("dl");
  if (r) { const m = facts.machines[r.machine], c = r.counts, part = k => c[k] === undefined ? null : `${c[k]} of ${r.n} = ${(100 * c[k] / r.n).toFixed(places(r.n))} %, 95 % interval ${r.intervals[k].join(" to ")}`;
    if (r.broken) entry(dl, "Withheld", r.broken);
    entry(dl, "Setting", `${r.setting}; preset ${r.preset}${r.subset ? "; a subset of the test images" : ""}`);
    for (const k of ["clean", "robust", "certified"]) entry(dl, k[0].toUpperCase() + k.slice(1), part(k));
    entry(dl, "Certificates", r.certificates.map(x => `${x[0]} (class ${x[1]}): ${x[2]}${x[3] ? ", the one that counts" : ""}`).join("; "));
    entry(dl, "Attacks", r.attacks.join("; "));
    if (r.contradicted) entry(dl, "Contradicted", `${r.contradicted} examples certified and yet broken; they count as neither`);
    if (r.seeds.length > 1) entry(dl, "Seeds", r.seeds.map(s => `${s[0]}: ${s[2].toFixed(places(r.n))} % (${s[1]})`).join("; ") + "; the counts above are of the first");
    entry(dl, "Repeat", withCopy(r.command));
    entry(dl, "Recipe", Object.entries(facts.recipes[r.recipe] || {}).map(([k, v]) => `${k} = ${Array.isArray(v) ? v.join(", ") : v}`).join("; ") + (r.modified ? "; changed by hand" : ""));
    entry(dl, "Recipe's source", r.source);
    entry(dl, "Device", `${m.device}, ${m.threads} threads, ${m.platform}`); entry(dl, "Kernels", m.kernels);
    entry(dl, "Versions", `certbench ${r.version}, torch ${m.torch}, numpy ${m.numpy}, Python ${m.python}`);
    entry(dl, "Commit", r.commit ? r.commit.slice(0, 12) + (r.dirty ? ", with uncommitted changes" : "") : "unknown");
    entry(dl, "Time", `training ${r.train}, everything ${r.wall}; finished ${r.finished}`);
    entry(dl, "Data, weights", `${r.data} ${r.official ? "(official)" : "(not the official arrays)"}, ${r.weights}`);
    entry(dl, "Record, cell", `${r.id.slice(0, 16)}, ${r.cell}`);
    open(r.title, dl);
  } else if (p) { entry(dl, "Setting", p.setting + (p.eps_used ? `; the paper used ${p.eps_used}` : ""));
    entry(dl, "Published", p.triple.map(v => v === null ? "\u2013" : v).join(" / ") + "  (clean / robust / certified)");
    entry(dl, "Paper", p.paper + ", " + p.venue); entry(dl, "Stands in", `${p.where} (${p.tag})`);
    entry(dl, "Printed as", p.label); entry(dl, "Network", p.network); entry(dl, "Certifier", p.certifier); entry(dl, "Attack", p.attack); entry(dl, "Test images", p.n); entry(dl, "Note", p.note);
    if (p.url && p.url.startsWith("https://")) { const a = make("a", p.url); a.href = p.url; entry(dl, "Link", a); }
    open(p.title + "\u2020", dl); } };
document.addEventListener("click", e => { const b = e.target.closest(".v"); if (b) { from = b; show(b.dataset.r || (b.closest("[data-r]") || { dataset: {} }).dataset.r); return; }
  const more = e.target.closest(".expand"); if (more) { const r = more.closest("tr"), on = r.classList.toggle("more"); more.textContent = on ? "Less" : "More"; more.setAttribute("aria-expanded", on); } });

// cards on a phone
for (const r of rows) { const b = make("button", "More", "expand"); b.type = "button"; b.setAttribute("aria-expanded", "false"); const c = make("td", undefined, "expand"); c.append(b); b.className = "expand"; r.append(c); }

// compare: pick rows by clicking beside a number
const picked = new Set(), bar = $("#compare");
const refresh = () => { for (const r of rows) { r.classList.toggle("picked", picked.has(r)); r.setAttribute("aria-selected", picked.has(r)); } bar.hidden = picked.size < 1;
  $("#compare-open").textContent = picked.size < 2 ? "Pick a second row to compare" : `Compare ${picked.size} rows`; $("#compare-open").disabled = picked.size < 2; };
const pick = r => { if (picked.has(r)) picked.delete(r); else picked.add(r); refresh(); };
for (const r of rows) { r.tabIndex = 0; r.addEventListener("click", e => { if (!e.target.closest("button, a")) pick(r); });
  r.addEventListener("keydown", e => { if (e.target === r && (e.key === " " || e.key === "Enter")) { e.preventDefault(); pick(r); } }); }
$("#compare-clear").addEventListener("click", () => { picked.clear(); refresh(); });
$("#compare-open").addEventListener("click", e => { from = e.target; const rs = [...picked], t = make("table"), names = shownHeads();
  for (const [i, h] of names) { const tr = make("tr"); tr.append(make("th", h)); for (const r of rs) { const c = r.cells[i].cloneNode(true); for (const b of all("button.v", c)) b.replaceWith(...b.childNodes); tr.append(make("td")); tr.lastChild.append(...c.childNodes); } t.append(tr); }
  const ids = rs.map(r => facts.records[r.dataset.r]).filter(Boolean), box = make("div", undefined, "scroll"); box.append(t);
  const same = new Set(rs.map(r => r.dataset.s)).size === 1 && new Set(rs.map(r => r.dataset.p)).size === 1;
  const note = make("p", same ? "Same data, eps and preset. Whether a difference is more than chance is a paired question:" : "Not comparable as they stand: data, eps or preset differ. Paired on the images they share:");
  open("Compare", box, note, ids.length > 1 ? withCopy("bench compare " + ids.map(r => r.id.slice(0, 12)).join(" ")) : make("p", "Published rows have no per-image results; no test is possible.")); });
const shownHeads = () => heads.map((h, i) => [i, h]).filter(([i]) => !table.tHead.rows[0].cells[i].classList.contains("off"));

// curves: hide and show, read out
for (const f of all("figure")) { const range = $("input[data-curve]", f); if (!range) continue; const curve = facts.curves[range.dataset.curve], out = $("output", f), hidden = new Set();
  const read = () => { const i = Number(range.value), x = curve.x[i], at = curve.levels ? (x * 255).toFixed(2) + "/255" : x.toFixed(4);
    out.textContent = `at ${at}: ` + curve.series.filter(s => !hidden.has(s[1])).map(s => `${s[0]} ${s[2][i].toFixed(curve.places)} %`).join("; "); range.setAttribute("aria-valuetext", out.textContent); };
  range.addEventListener("input", read); read();
  for (const b of all(".chips button", f)) b.addEventListener("click", () => { const m = b.dataset.m, on = hidden.has(m); if (on) hidden.delete(m); else hidden.add(m); b.setAttribute("aria-pressed", on);
    for (const g of [`m-${m}`, `r-${m}`]) { const e = document.getElementById(`${range.dataset.curve}-${g}`); if (e) e.classList.toggle("off", !on); } read(); });
  const svg = $("svg", f), box = svg.viewBox.baseVal; svg.addEventListener("pointermove", e => { const r = svg.getBoundingClientRect(), x = (e.clientX - r.left) / r.width * box.width;
    const share = (x - 33.12) / (box.width - 47.52); if (share >= 0 && share <= 1) { range.value = Math.round(share * range.max); read(); } }); }

apply(); restore(); apply();
window.addEventListener("hashchange", () => { restore(); apply(); });
})();
