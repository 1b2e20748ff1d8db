internal import MartletCore

/// The report as one HTML page.
struct ReportPage {
    let content: ReportContent

    var html: String {
        """
        <!doctype html>
        <html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
        <title>\(HTML.escape(content.title))</title>
        <style>\(ReportStyle.css)</style></head><body>
        <header><h1>\(HTML.escape(content.title))</h1><p class="sub">\(HTML.escape(content.subtitle))</p>\(tiles)</header>
        \(loss)\(smallCharts)\(experts)\(tables)\(samples)\(notes)\(recipe)
        </body></html>

        """
    }

    private var tiles: String {
        let tiles = content.tiles.map {
            "<div class=\"tile\"><b>\(HTML.escape($0.value))</b><span>\(HTML.escape($0.name))</span></div>"
        }
        return "<div class=\"tiles\">\(tiles.joined())</div>"
    }

    // MARK: Curves

    private var loss: String {
        let train = content.curve("loss").thinned(to: 600)
        let chart = LineChart(
            title: "Loss over steps",
            series: [
                .init(name: "training", look: .faint, color: "blue", points: train.count > 20 ? train : []),
                .init(
                    name: train.count > 20 ? "training, smoothed" : "training", look: .strong, color: "blue",
                    points: train.count > 20 ? train.smoothed() : train),
                .init(
                    name: "validation", look: .points, color: "orange",
                    points: content.curve("eval_loss").thinned(to: 200)),
            ])
        return HTML.section(
            "Loss", scrolling(chart.svg()) + chart.legend(), note: "Mean over the tokens that count, in nats.")
    }

    private var smallCharts: String {
        let charts = [
            small("Learning rate", "learning_rate", includesZero: true),
            small("Gradient norm, before clipping", "grad_norm", includesZero: true),
            small("Tokens a second", "tokens_per_second", includesZero: true),
        ].filter { !$0.isEmpty }
        return charts.isEmpty ? "" : "<section><div class=\"charts\">\(charts.joined())</div></section>\n"
    }

    private func small(_ title: String, _ key: String, includesZero: Bool) -> String {
        let chart = LineChart(
            title: title,
            series: [.init(name: title, look: .strong, color: "blue", points: content.curve(key).thinned(to: 300))],
            width: 350, height: 190, includesZero: includesZero)
        let svg = chart.svg()
        return svg.isEmpty ? "" : "<div><h3>\(HTML.escape(title))</h3>\(svg)</div>"
    }

    // MARK: Experts

    private var experts: String {
        let load = content.load.sum_LE
        guard let expertCount = load.first?.count, expertCount > 0 else { return "" }
        let relative = load.map { row -> [Double] in
            let mean = Double(row.reduce(0, +)) / Double(expertCount)
            return row.map { mean > 0 ? Double($0) / mean : 0 }
        }
        let map = HeatMap(
            title: "Expert load", rows: relative, top: 3, rowName: "sparse layer", columnName: "expert",
            columnRange: (0, expertCount - 1), marksZero: true)
        let idle = load.joined().filter { $0 == 0 }.count
        let note =
            "Tokens of each expert over the mean of its layer, in the last \(content.load.stepCount) steps. "
            + (idle == 0 ? "Every expert got tokens." : "\(idle) of \(load.count * expertCount) experts got none.")
        let legend = map.legend(
            zero: "no token", [(0.5, "half the mean"), (1, "the mean"), (2, "twice"), (3, "three times or more")])
        return HTML.section("Expert load", scrolling(map.svg()) + legend, note: note) + balance
    }

    /// The busiest expert of each layer over time.
    private var balance: String {
        let history = content.layers("expert_load_max_over_mean")
        guard history.count > 1, let first = history.first, let last = history.last else { return "" }
        let columns = min(history.count, 120)
        let rows = first.values.indices.map { layer in
            (0..<columns).map { column -> Double in
                let part = history[column * history.count / columns..<(column + 1) * history.count / columns]
                return part.reduce(0) { $0 + ($1.values.indices.contains(layer) ? $1.values[layer] : 0) }
                    / Double(part.count)
            }
        }
        let top = max(rows.joined().max() ?? 1, 1.1)
        let map = HeatMap(
            title: "Busiest expert", rows: rows, bottom: 1, top: top, rowName: "sparse layer", columnName: "step",
            columnRange: (first.step, last.step))
        let legend = map.legend(zero: "", [(1, "1, balanced"), (top, NumberText.short(top) + ", the most here")])
        return HTML.section(
            "Balance over time", scrolling(map.svg()) + legend,
            note: "Load of the busiest expert over the mean of its layer.")
    }

    /// On a narrow screen a wide picture is moved under the window, not shrunk.
    private func scrolling(_ svg: String) -> String { svg.isEmpty ? "" : "<div class=\"scroll\">\(svg)</div>" }

    // MARK: Tables

    private var tables: String {
        let set = content.trainable
        var groups = set.groups.map { group in
            [
                group.name, String(group.tensorCount), NumberText.count(group.parameterCount),
                NumberText.percent(Double(group.parameterCount) / Double(max(set.totalCount, 1))),
            ]
        }
        groups.append([
            "all", String(set.tensorCount), NumberText.count(set.parameterCount), NumberText.percent(set.share),
        ])
        let trained = HTML.table(
            ["group", "tensors", "parameters", "share of the model"], groups, numbers: [1, 2, 3], sumsUp: true)
        return HTML.section("What is trained", trained) + facts("Memory", content.memory, sumsUp: true)
            + facts("Data", content.data) + facts("Model", content.facts)
    }

    private func facts(_ title: String, _ rows: [ReportContent.Row], sumsUp: Bool = false) -> String {
        guard !rows.isEmpty else { return "" }
        let hasNotes = rows.contains { $0.note != nil }
        let cells = rows.map { [$0.name, $0.value] + (hasNotes ? [$0.note ?? ""] : []) }
        return HTML.section(title, HTML.table([], cells, numbers: sumsUp ? [1] : [], sumsUp: sumsUp))
    }

    // MARK: Texts

    private var samples: String {
        let pairs = content.samples.map { sample in
            """
            <pre class="prompt">\(HTML.escape(sample.prompt))</pre><div class="pair"><div><h3>before</h3><pre>\(HTML.escape(sample.before))</pre>\
            </div><div><h3>after</h3><pre>\(HTML.escape(sample.after))</pre></div></div>
            """
        }
        return HTML.section(
            "Before and after", pairs.joined(),
            note: "How the model goes on, always with the likeliest token, before the training and after it.")
    }

    private var notes: String {
        let items = content.notes.map { "<li>\(HTML.escape($0))</li>" }.joined()
        return HTML.section("Notes of the run", items.isEmpty ? "" : "<ul>\(items)</ul>")
    }

    private var recipe: String {
        HTML.section(
            "Recipe",
            "<details><summary>every key and its value</summary><pre>\(HTML.escape(content.recipe))</pre></details>")
    }
}
