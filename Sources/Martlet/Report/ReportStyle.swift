/// The look of the report: no script, no external resource, light and dark.
enum ReportStyle {
    static let css = """
        :root{color-scheme:light dark;--bg:#fff;--panel:#f6f7f9;--text:#1c2230;--muted:#5d6778;--line:#dfe3ea;\
        --blue:#2563c9;--orange:#c2570c;--heat:#2563c9;--warn:#d97706}
        @media(prefers-color-scheme:dark){:root{--bg:#12161d;--panel:#1a2029;--text:#e6e9ef;--muted:#98a2b3;\
        --line:#2b333f;--blue:#6ea8ff;--orange:#f59e5b;--heat:#6ea8ff;--warn:#e0a03a}}
        *{box-sizing:border-box}
        body{margin:0 auto;max-width:1040px;padding:32px 20px 64px;background:var(--bg);color:var(--text);\
        font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
        h1{font-size:26px;line-height:1.2;margin:0 0 4px}
        h2{font-size:17px;margin:0 0 8px}
        h3{font-size:14px;margin:0 0 6px;color:var(--muted);font-weight:600}
        .sub,.note{color:var(--muted);margin:0 0 12px}
        section{margin-top:34px}
        .tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(132px,1fr));gap:10px;margin-top:20px}
        .tile{background:var(--panel);border-radius:10px;padding:12px 14px}
        .tile b{display:block;font-size:20px;line-height:1.25;font-weight:650;font-variant-numeric:tabular-nums}
        .tile span{color:var(--muted);font-size:13px}
        .charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:18px}
        svg{display:block;width:100%;height:auto;font-size:11.5px;font-variant-numeric:tabular-nums}
        svg.wide{min-width:640px}
        svg text{fill:var(--muted)}
        .grid{stroke:var(--line);stroke-width:1}
        .axis{stroke:var(--muted);stroke-width:1}
        .faint,.strong,.thin{fill:none;stroke-linejoin:round;stroke-linecap:round}
        .faint{stroke-width:1;opacity:.35}
        .strong{stroke-width:2}
        .thin{stroke-width:1.2;opacity:.7}
        .frame{fill:var(--panel)}
        .legend{display:flex;flex-wrap:wrap;gap:6px 18px;margin:8px 0 0;color:var(--muted);font-size:13px}
        .legend span{display:inline-flex;align-items:center;gap:7px}
        .legend i{display:inline-block;width:18px;height:3px;border-radius:2px;background:var(--c)}
        .legend i.faint{opacity:.35}
        .legend i.points{width:8px;height:8px;border-radius:50%}
        .legend i.cell{width:14px;height:14px;background:var(--panel);border-radius:3px;overflow:hidden;outline:1px solid var(--line)}
        .legend i.cell b{display:block;width:100%;height:100%;background:var(--heat)}
        .scroll{overflow-x:auto}
        table{border-collapse:collapse;width:100%;font-size:14px}
        th,td{text-align:left;padding:6px 14px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
        th{color:var(--muted);font-weight:600;font-size:13px}
        td:first-child{white-space:nowrap}
        td:last-child{width:50%}
        .n:last-child{width:auto}
        .n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
        .sum td{font-weight:650;border-bottom:0}
        pre{background:var(--panel);border-radius:10px;padding:14px;overflow-x:auto;font-size:13px;line-height:1.45;margin:0;\
        white-space:pre-wrap;overflow-wrap:anywhere;font-family:ui-monospace,"SF Mono",Menlo,"DejaVu Sans Mono",monospace}
        .prompt{margin:0 0 8px;background:none;border:1px solid var(--line)}
        .pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:12px;margin-bottom:18px}
        details summary{cursor:pointer;color:var(--muted);margin-bottom:10px}
        @media print{body{max-width:none}details{display:block}}
        """
}
