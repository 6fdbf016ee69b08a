"""The style sheet of the report."""

# CSS reads best with one rule per line.
# ruff: noqa: E501

STYLE = """
:root{--ink:#1f2933;--muted:#616e7c;--line:#e4e7eb;--soft:#f5f7fa;--accent:#0f766e;--off:#b45309}
*{box-sizing:border-box}
body{margin:0;background:#fff;color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:60rem;margin:0 auto;padding:2rem 1.25rem 4rem}
header p{color:var(--muted);margin:.25rem 0 0}
h1{font-size:1.75rem;line-height:1.2;margin:0;letter-spacing:-.01em}
h2{font-size:1.2rem;margin:2.5rem 0 .75rem;padding-bottom:.35rem;border-bottom:1px solid var(--line)}
code,pre{font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}
code{overflow-wrap:anywhere}
pre{background:var(--soft);padding:1rem;border-radius:6px;overflow-x:auto}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.75rem;margin:1.5rem 0}
.facts div{background:var(--soft);border-radius:8px;padding:.8rem .75rem}
.facts b{display:block;font-size:1.25rem;line-height:1.35;white-space:nowrap;color:var(--accent);font-variant-numeric:tabular-nums}
.facts span{font-size:.85rem;color:var(--muted)}
.warn{background:#fff7ed;border-left:3px solid var(--off);padding:.6rem .9rem;margin:.75rem 0}
.note{color:var(--muted);font-size:.9rem}
dl{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.3rem 1.25rem;margin:0}
dt{color:var(--muted)}
dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:.75rem 0}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:.42rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left;padding-left:0}
th{font-weight:600;color:var(--muted);border-bottom-width:2px}
tr.best td{font-weight:700;color:var(--accent)}
figure{margin:1.25rem 0}
figure img{max-width:100%;height:auto;display:block;border:1px solid var(--line);border-radius:6px}
figcaption{color:var(--muted);font-size:.9rem;margin-top:.4rem}
article{border:1px solid var(--line);border-radius:8px;padding:.8rem 1rem;margin:.75rem 0}
.head{display:flex;flex-wrap:wrap;align-items:baseline;gap:.3rem .7rem}
.head b{color:var(--muted);min-width:1.4rem}
.head .score{margin-left:auto;font-weight:700;color:var(--accent);font-variant-numeric:tabular-nums}
.badge{font-size:.78rem;padding:.05rem .55rem;border-radius:99px;background:var(--soft);color:var(--muted)}
.badge.on{background:#d7efec;color:#0b544e}
.badge.off{background:#fdebd8;color:#8a3f06}
.text{margin:.4rem 0;white-space:pre-wrap;overflow-wrap:anywhere}
summary{cursor:pointer}
summary i{color:var(--accent);font-style:normal}
.near{margin:.3rem 0;font-size:.88rem;color:var(--muted);overflow-wrap:anywhere}
.near code{color:var(--ink)}
.latents{list-style:none;margin:.5rem 0 0;padding:0;font-size:.84rem}
.latents li{display:grid;grid-template-columns:4rem 6rem 4.4rem 1fr;gap:.6rem;align-items:center;line-height:1.6}
.latents li>span:nth-child(3){text-align:right;font-variant-numeric:tabular-nums}
.latents em{font-style:normal;color:var(--muted);overflow-wrap:anywhere}
.bar{background:var(--soft);height:.55rem;border-radius:3px;overflow:hidden}
.bar i{display:block;height:100%;background:var(--accent)}
.bar i.minus{background:var(--off)}
@media(max-width:36rem){
main{padding:1.25rem .9rem 3rem}
dl{grid-template-columns:1fr;gap:0}
dd{margin-bottom:.5rem}
.latents li{grid-template-columns:3.4rem 3.5rem 4.2rem 1fr}
}
@media print{article,figure{break-inside:avoid}}
"""
