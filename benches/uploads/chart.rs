//! The table's main lines as a picture: bars with their scatter, in SVG that follows the reader's light or dark page.
//!
//! Apart because nothing is measured or judged here. What was not measured is left out.

use std::fmt::Write as _;

use super::table::{Samples, Spread, number};

/// A bar: whose, the sample's name.
struct Bar(&'static str, &'static str, Hue);

/// The other servers: what they are called here, and how the names of their samples begin.
const RIVALS: [(&str, &str); 6] = [
    ("FastAPI, UploadFile, hash and fsync", "FastAPI tuned"),
    ("FastAPI, streamed, hash and fsync", "FastAPI streamed"),
    ("FastAPI, UploadFile saved *", "FastAPI"),
    ("@tus/server *", "@tus/server"),
    ("dufs PUT *", "dufs"),
    ("nginx PUT *", "nginx PUT"),
];

/// What a bar stands for.
#[derive(Clone, Copy, PartialEq)]
enum Hue {
    Gateway,
    /// What the machine can do.
    Limit,
    Other,
}

use Hue::{Gateway, Limit, Other};

/// Bars that share a scale, all in seconds.
struct Panel {
    title: &'static str,
    bars: &'static [Bar],
    /// How the names of the other servers' samples end.
    rivals: &'static str,
}

const PANELS: [Panel; 3] = [
    Panel {
        title: "One upload of {size}, seconds",
        bars: &[
            Bar("limit: SHA-256 on one core", "sha", Limit),
            Bar("limit: write to the disk, fsync", "disk", Limit),
            Bar("Recording Gateway", "one", Gateway),
            Bar("bare blocking loop", "floor", Other),
        ],
        rivals: "",
    },
    Panel {
        title: "64 uploads at once, {size} together, seconds",
        bars: &[
            Bar("Recording Gateway", "many", Gateway),
            Bar("bare blocking loop, 64 threads", "floor 64", Other),
        ],
        rivals: " 64",
    },
    Panel {
        title: "Processor time for one upload of {size}, seconds",
        bars: &[Bar("Recording Gateway", "one cpu", Gateway), Bar("bare blocking loop", "floor cpu", Other)],
        rivals: " cpu",
    },
];

const WIDTH: f64 = 780.0;
/// Where bars begin, and how long the longest may be: behind it stands its figure.
const LEFT: f64 = 262.0;
const LONGEST: f64 = 430.0;
const BAR: f64 = 16.0;
const STEP: f64 = 23.0;
const TITLE: f64 = 40.0;

const STYLE: &str = "\
    text { font: 13px system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328 }\n\
    .title { font-weight: 600; font-size: 15px }\n\
    .note { fill: #59636e; font-size: 12px }\n\
    .gateway { fill: #0969da } .limit { fill: #afb8c1 } .other { fill: #848d97 }\n\
    .ours { font-weight: 600 }\n\
    line { stroke: #1f2328; stroke-width: 1.5 }\n\
    @media (prefers-color-scheme: dark) {\n\
    text { fill: #f0f6fc } .note { fill: #9198a1 } line { stroke: #f0f6fc }\n\
    .gateway { fill: #4493f8 } .limit { fill: #3d444d } .other { fill: #656c76 }\n\
    }\n";

/// The picture; `bytes` are those of the large upload.
pub fn svg(samples: &Samples, bytes: u64) -> String {
    let size = match bytes >> 20 {
        mib if mib % 1024 == 0 => format!("{} GiB", mib / 1024),
        mib => format!("{mib} MiB"),
    };
    let (mut body, mut y) = (String::new(), 0.0);
    for panel in &PANELS {
        let own = panel.bars.iter().map(|Bar(who, name, hue)| (*who, samples.spread(name), *hue));
        let rivals = RIVALS
            .iter()
            .map(|(who, name)| (*who, samples.spread(&format!("{name}{}", panel.rivals)), Other));
        let bars: Vec<(&str, Spread, Hue)> =
            own.chain(rivals).filter_map(|(who, spread, hue)| Some((who, spread?, hue))).collect();
        let Some(most) = bars.iter().map(|(_, spread, _)| spread.most).reduce(f64::max) else { continue };
        let _ = writeln!(
            body,
            r#"<text class="title" x="8" y="{:.0}">{}</text>"#,
            y + 26.0,
            panel.title.replace("{size}", &size)
        );
        y += TITLE;
        for (who, spread, hue) in bars {
            draw(&mut body, y, who, hue, spread, LONGEST / most);
            y += STEP;
        }
    }
    let notes = [
        "Medians; the thin lines reach from the least to the most. Shorter is better. Client and server share the machine.",
        "* neither hashes nor syncs what it takes; the gateway and the other servers do both before they answer.",
    ];
    y += 8.0;
    for note in notes {
        y += 18.0;
        let _ = writeln!(body, r#"<text class="note" x="8" y="{y:.0}">{note}</text>"#);
    }
    let height = y + 12.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Benchmark: the gateway beside the machine's \
         limits and other servers\">\n<style>\n{STYLE}</style>\n{body}</svg>\n"
    )
}

fn draw(body: &mut String, y: f64, who: &str, hue: Hue, spread: Spread, scale: f64) {
    let (class, ours) = match hue {
        Gateway => ("gateway", r#" class="ours""#),
        Limit => ("limit", ""),
        Other => ("other", ""),
    };
    let text = y + BAR - 4.0;
    let at = |value: f64| LEFT + value * scale;
    let _ =
        writeln!(body, r#"<text{ours} x="{:.0}" y="{text:.0}" text-anchor="end">{who}</text>"#, LEFT - 8.0);
    let _ = writeln!(
        body,
        r#"<rect class="{class}" x="{LEFT}" y="{y:.0}" width="{:.1}" height="{BAR}" rx="2"/>"#,
        at(spread.median) - LEFT
    );
    if spread.most > spread.least {
        let middle = y + BAR / 2.0;
        let _ = writeln!(
            body,
            r#"<line x1="{:.1}" y1="{middle:.1}" x2="{:.1}" y2="{middle:.1}"/>"#,
            at(spread.least),
            at(spread.most)
        );
    }
    let _ = writeln!(
        body,
        r#"<text{ours} x="{:.1}" y="{text:.0}">{} s</text>"#,
        at(spread.most) + 8.0,
        number(spread.median)
    );
}
