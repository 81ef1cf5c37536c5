//! How cost grows as a picture: small panels of curves over sizes, in SVG that follows the reader's light or dark page.
//!
//! Apart from the bars, whose scale is time alone. Nothing is measured or judged here; a panel without figures is left out.

use std::fmt::Write as _;

use super::growth::{Growth, Point, grouped};
use super::table::number;

/// Curves of one table that share a scale from 0 on.
struct Panel {
    title: &'static str,
    /// What stands below the sizes.
    below: &'static str,
    growth: &'static str,
    unit: &'static str,
    /// From the table's unit to the panel's.
    times: f64,
    /// A line of the table, and what it is called here.
    curves: &'static [(&'static str, &'static str)],
}

const PANELS: [Panel; 8] = [
    Panel {
        title: "Memory, many slow uploads",
        below: "uploads at once",
        growth: "slow",
        unit: "MiB",
        times: 1.0,
        curves: &[("peak memory", "")],
    },
    Panel {
        title: "Wait for the answer, many slow uploads",
        below: "uploads at once",
        growth: "slow",
        unit: "ms",
        times: 1.0,
        curves: &[("last byte to answer, 99 of 100", "99 of 100"), ("last byte to answer, median", "median")],
    },
    Panel {
        title: "Memory, one upload",
        below: "size of the upload",
        growth: "size",
        unit: "MiB",
        times: 1.0,
        curves: &[("peak memory", "")],
    },
    Panel {
        title: "Open files and sockets, many slow uploads",
        below: "uploads at once",
        growth: "slow",
        unit: "",
        times: 1.0,
        curves: &[("open descriptors", "")],
    },
    Panel {
        title: "Pages of a session",
        below: "recordings in the session",
        growth: "session",
        unit: "ms",
        times: 1.0,
        curves: &[
            ("first page", "first page"),
            ("page in the middle", "in the middle"),
            ("newest recording", "newest one"),
        ],
    },
    Panel {
        title: "List of sessions, one of them long",
        below: "recordings in the long one",
        growth: "session",
        unit: "ms",
        times: 1.0,
        curves: &[("list of sessions", "")],
    },
    Panel {
        title: "First page of a session after an upload",
        below: "recordings in the session",
        growth: "session",
        unit: "ms",
        times: 1.0,
        curves: &[("first page after an upload", "")],
    },
    Panel {
        title: "The catalogue",
        below: "recordings in it",
        growth: "catalogue",
        unit: "ms",
        times: 1e-3,
        curves: &[
            ("delete one (tombstone and confirmation)", "delete"),
            ("claim a job and finish it", "do a job"),
            ("keep an upload (commit)", "keep an upload"),
            ("newest 100 changes", "100 changes"),
            ("figures for operators", "figures"),
            ("get one", "get one"),
        ],
    },
];

const COLUMNS: usize = 2;
const WIDTH: f64 = 780.0;
const PANEL: (f64, f64) = (WIDTH / COLUMNS as f64, 224.0);
/// The part of a panel in which its curves lie: left, top, width, height.
const PLOT: (f64, f64, f64, f64) = (54.0, 44.0, 200.0, 124.0);
/// From one name to the next.
const LINE: f64 = 14.0;
const HUES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

const STYLE: &str = "\
    text { font: 12px system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328 }\n\
    .title { font-weight: 600; font-size: 14px }\n\
    .note { fill: #59636e }\n\
    .grid { stroke: #d1d9e0; stroke-width: 1 }\n\
    polyline { fill: none; stroke-width: 2; stroke-linejoin: round }\n\
    polyline.a { stroke: #0969da } circle.a, text.a { fill: #0969da }\n\
    polyline.b { stroke: #9a6700 } circle.b, text.b { fill: #9a6700 }\n\
    polyline.c { stroke: #1a7f37 } circle.c, text.c { fill: #1a7f37 }\n\
    polyline.d { stroke: #8250df } circle.d, text.d { fill: #8250df }\n\
    polyline.e { stroke: #cf222e } circle.e, text.e { fill: #cf222e }\n\
    polyline.f { stroke: #59636e } circle.f, text.f { fill: #59636e }\n\
    @media (prefers-color-scheme: dark) {\n\
    text { fill: #f0f6fc } .note { fill: #9198a1 } .grid { stroke: #3d444d }\n\
    polyline.a { stroke: #4493f8 } circle.a, text.a { fill: #4493f8 }\n\
    polyline.b { stroke: #d29922 } circle.b, text.b { fill: #d29922 }\n\
    polyline.c { stroke: #3fb950 } circle.c, text.c { fill: #3fb950 }\n\
    polyline.d { stroke: #ab7df8 } circle.d, text.d { fill: #ab7df8 }\n\
    polyline.e { stroke: #f85149 } circle.e, text.e { fill: #f85149 }\n\
    polyline.f { stroke: #9198a1 } circle.f, text.f { fill: #9198a1 }\n\
    }\n";

/// The picture of what was measured.
pub fn svg(growth: &[Growth]) -> String {
    let (mut body, mut drawn) = (String::new(), 0);
    for panel in &PANELS {
        let Some(growth) = growth.iter().find(|growth| growth.name == panel.growth) else { continue };
        let corner = ((drawn % COLUMNS) as f64 * PANEL.0, (drawn / COLUMNS) as f64 * PANEL.1);
        drawn += usize::from(draw(&mut body, panel, growth, corner));
    }
    let note = drawn.div_ceil(COLUMNS) as f64 * PANEL.1 + 14.0;
    let height = note + 12.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"How the gateway's cost grows with uploads at \
         once, their size, and the number of recordings\">\n<style>\n{STYLE}</style>\n{body}\
         <text class=\"note\" x=\"8\" y=\"{note}\">Sizes grow many times over from step to step: what grows \
         evenly with them bends upwards, what does not grow stays flat.</text>\n</svg>\n"
    )
}

/// A panel at its place. Returns whether there was anything to draw.
fn draw(body: &mut String, panel: &Panel, growth: &Growth, corner: (f64, f64)) -> bool {
    let curves: Vec<(&str, Vec<Point>)> = panel
        .curves
        .iter()
        .map(|(line, name)| (*name, growth.curve(line)))
        .filter(|(_, points)| !points.is_empty())
        .collect();
    let points = || curves.iter().flat_map(|(_, points)| points);
    let Some(most) = points().map(|point| point.value * panel.times).reduce(f64::max) else { return false };
    let (first, last) = points()
        .fold((f64::MAX, 0.0), |(first, last): (f64, f64), point| (first.min(point.at), last.max(point.at)));
    let (left, top) = (corner.0 + PLOT.0, corner.1 + PLOT.1);
    let bottom = top + PLOT.3;
    let step = step(most);
    let ceiling = (most / step).ceil().max(1.0) * step;
    let x = |at: f64| match last > first {
        true => left + (at / first).ln() / (last / first).ln() * PLOT.2,
        false => left + PLOT.2 / 2.0,
    };
    let y = |value: f64| bottom - value / ceiling * PLOT.3;

    let (title, unit) = (panel.title, panel.unit);
    let comma = if unit.is_empty() { "" } else { ", " };
    let _ = writeln!(
        body,
        r#"<text class="title" x="{:.0}" y="{:.0}">{title}{comma}{unit}</text>"#,
        corner.0 + 8.0,
        corner.1 + 24.0
    );
    for n in 0..=(ceiling / step).round() as u32 {
        let value = f64::from(n) * step;
        let (at, text) = (y(value), axis(value));
        let _ = writeln!(
            body,
            r#"<line class="grid" x1="{left:.0}" y1="{at:.1}" x2="{:.0}" y2="{at:.1}"/><text class="note" x="{:.0}" y="{:.1}" text-anchor="end">{text}</text>"#,
            left + PLOT.2,
            left - 6.0,
            at + 4.0
        );
    }
    let sizes = curves.iter().map(|(_, points)| points).max_by_key(|points| points.len());
    for Point { at, label, .. } in sizes.into_iter().flatten() {
        let _ = writeln!(
            body,
            r#"<text class="note" x="{:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#,
            x(*at),
            bottom + 17.0
        );
    }
    let _ = writeln!(
        body,
        r#"<text class="note" x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
        left + PLOT.2 / 2.0,
        bottom + 34.0,
        panel.below
    );

    // Names stand at the right ends, pushed apart where curves end close to each other.
    let mut ends: Vec<(f64, usize)> = Vec::new();
    for (n, (_, points)) in curves.iter().enumerate() {
        let hue = HUES[n % HUES.len()];
        let places: Vec<(f64, f64)> =
            points.iter().map(|point| (x(point.at), y(point.value * panel.times))).collect();
        let corners: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(body, r#"<polyline class="{hue}" points="{}"/>"#, corners.join(" "));
        for ((x, y), point) in places.iter().zip(points) {
            let _ = writeln!(body, r#"<circle class="{hue}" cx="{x:.1}" cy="{y:.1}" r="3"/>"#);
            // A curve alone has room for its figures.
            if curves.len() == 1 && point.at < last {
                let figure = axis(point.value * panel.times);
                let _ = writeln!(
                    body,
                    r#"<text class="{hue}" x="{x:.1}" y="{:.1}" text-anchor="middle">{figure}</text>"#,
                    y - 8.0
                );
            }
        }
        ends.extend(places.last().map(|(_, y)| (*y, n)));
    }
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut above = f64::MIN;
    for end in &mut ends {
        end.0 = end.0.max(above + LINE);
        above = end.0;
    }
    // What was pushed below the axis takes those above it along, upwards.
    let mut below = bottom + LINE;
    for end in ends.iter_mut().rev() {
        end.0 = end.0.min(below - LINE);
        below = end.0;
    }
    for (at, n) in ends {
        let (name, points) = &curves[n];
        let value = points.last().map_or(0.0, |point| point.value * panel.times);
        let colon = if name.is_empty() { "" } else { ": " };
        let _ = writeln!(
            body,
            r#"<text class="{}" x="{:.1}" y="{:.1}">{name}{colon}{}</text>"#,
            HUES[n % HUES.len()],
            left + PLOT.2 + 8.0,
            at + 4.0,
            axis(value)
        );
    }
    true
}

/// From one line of the grid to the next: 1, 2 or 5 of a power of ten, for about four lines.
fn step(most: f64) -> f64 {
    let rough = (most / 4.0).max(1e-3);
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| *step >= rough).unwrap_or(rough)
}

/// A figure without digits that say nothing.
fn axis(value: f64) -> String {
    if value >= 1000.0 {
        return grouped(value.round() as u64);
    }
    let text = number(value);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}
