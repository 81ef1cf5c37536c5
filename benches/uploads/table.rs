//! Samples, their medians and ratios, and the table that is printed.
//!
//! Apart so that what is compared with what stands in one place, beside its target. Nothing here measures.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

/// Every figure taken, by name, in the order of the rounds.
#[derive(Default)]
pub struct Samples(BTreeMap<String, Vec<f64>>);

impl Samples {
    /// Adds a round's figure. A name that no line has is refused: its figures would be lost.
    pub fn add(&mut self, name: &str, value: f64) {
        assert!(rows().any(|row| row.2 == name), "no line of the table has {name}");
        self.0.entry(name.to_owned()).or_default().push(value);
    }

    fn get(&self, name: &str) -> &[f64] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// What was measured under that name, if it was.
    pub fn spread(&self, name: &str) -> Option<Spread> {
        Spread::of(self.get(name))
    }
}

/// The middle of some figures and how far they lie apart.
#[derive(Clone, Copy)]
pub struct Spread {
    /// Half of them are not above, half not below.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
    count: usize,
}

impl Spread {
    /// Of none there is none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let (middle, count) = (sorted.len() / 2, sorted.len());
        let median =
            if count % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Self { median, least, most, count })
    }

    /// Without the single figures.
    pub fn json(self) -> Value {
        json!({"median": self.median, "min": self.least, "max": self.most})
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.count {
            1 => f.write_str(&number(self.median)),
            _ => write!(f, "{} [{}–{}]", number(self.median), number(self.least), number(self.most)),
        }
    }
}

/// How a figure is compared. Ratios are taken round by round, then their median.
enum Compare {
    /// The figure alone.
    Alone,
    /// Times: the slowest of the others' divided by this one's; at least the target.
    RateOf(&'static [&'static str], f64),
    /// Rates, or times of who is to be slower: this one's divided by the other's; at least the target.
    TimesAsMany(&'static str, f64),
    /// Times: this one's divided by the other's; at most the target.
    CostOf(&'static str, f64),
    /// Costs: the other's divided by this one's; at most the target.
    OthersCost(&'static str, f64),
    /// The difference to the other, in the figure's unit; at most the target.
    MoreThan(&'static str, f64),
    /// The figure itself; at most the target.
    AtMost(f64),
}

struct Row(&'static str, &'static str, &'static str, Compare);

use Compare::{Alone, AtMost, CostOf, MoreThan, OthersCost, RateOf, TimesAsMany};

/// What, unit, sample, comparison. Targets are the product's; a comparison with target 0 has none.
const ROWS: &[Row] = &[
    Row("limit: SHA-256 on one core", "s", "sha", Alone),
    Row("limit: copying within memory on one core", "s", "copy", Alone),
    Row("limit: 128 KiB blocks to the disk, fsync", "s", "disk", Alone),
    Row("the same, write-back started every 8 MiB", "s", "disk early", Alone),
    Row("limit: axum reads and discards", "s", "discard", Alone),
    Row("bare blocking loop, all duties", "s", "floor", RateOf(&["sha", "disk"], 0.0)),
    Row(
        "**gateway, one upload**, against the slower of hash and disk",
        "s",
        "one",
        RateOf(&["sha", "disk"], 0.85),
    ),
    Row("gateway against the bare loop, wall time", "s", "one", RateOf(&["floor"], 0.0)),
    Row("gateway, 16 KiB written at a time, against large", "s", "one, 16 KiB writes", RateOf(&["one"], 0.9)),
    Row(
        "gateway, frames of 16 KiB (chunked), against large",
        "s",
        "one, 16 KiB frames",
        RateOf(&["one"], 0.9),
    ),
    Row("gateway fed by curl", "s", "one, curl", RateOf(&["sha", "disk"], 0.0)),
    Row(
        "gateway fed by curl over HTTP/2, against HTTP/1.1",
        "s",
        "one, curl, HTTP/2",
        RateOf(&["one, curl"], 0.0),
    ),
    Row(
        "gateway behind nginx, which ends TLS, fed by curl, against in the clear",
        "s",
        "one, curl, TLS",
        RateOf(&["one, curl"], 0.0),
    ),
    Row("the same with HTTP/2 to nginx", "s", "one, curl, TLS, HTTP/2", RateOf(&["one, curl"], 0.0)),
    Row("bare loop, CPU", "cpu s", "floor cpu", Alone),
    Row("**gateway, CPU**, against the bare loop", "cpu s", "one cpu", CostOf("floor cpu", 1.1)),
    Row(
        "gateway, CPU, frames of 16 KiB, against the bare loop",
        "cpu s",
        "one, 16 KiB frames cpu",
        CostOf("floor cpu", 0.0),
    ),
    Row(
        "gateway, CPU, 16 KiB written at a time",
        "cpu s",
        "one, 16 KiB writes cpu",
        CostOf("floor cpu", 0.0),
    ),
    Row("gateway, peak memory, one upload", "MiB", "one peak", Alone),
    Row("gateway, peak memory, 16 KiB written at a time", "MiB", "one, 16 KiB writes peak", Alone),
    Row("gateway, peak memory, frames of 16 KiB", "MiB", "one, 16 KiB frames peak", Alone),
    Row("bare loop, 64 at once", "s", "floor 64", Alone),
    Row("bare loop, 64 at once, CPU", "cpu s", "floor 64 cpu", Alone),
    Row("bare loop, 64 at once, peak memory", "MiB", "floor 64 peak", Alone),
    Row(
        "**gateway, 64 at once**, against the bare loop in 64 threads",
        "s",
        "many",
        RateOf(&["floor 64"], 1.0),
    ),
    Row("gateway, 64 at once, CPU, against the bare loop", "cpu s", "many cpu", CostOf("floor 64 cpu", 0.0)),
    Row("gateway, 64 at once, peak memory", "MiB", "many peak", AtMost(100.0)),
    Row("limit: axum reads and discards 64 KiB, 64 clients", "requests/s", "small discard", Alone),
    Row("one fsync of file and directory each, one after another", "files/s", "small floor 1", Alone),
    Row("one fsync of file and directory each, 64 threads", "files/s", "small floor", Alone),
    Row(
        "**small durable uploads**, 64 clients, 64 KiB, against one after another",
        "uploads/s",
        "small",
        TimesAsMany("small floor 1", 5.0),
    ),
    Row(
        "small durable uploads, against the 64 threads",
        "uploads/s",
        "small",
        TimesAsMany("small floor", 0.0),
    ),
    Row("small durable uploads, CPU each", "cpu ms", "small cpu ms each", Alone),
    Row("gateway, peak memory, 1 MiB upload", "MiB", "peak 1 MiB", Alone),
    Row(
        "**gateway, peak memory, 10 GiB upload**, more than with 1 MiB",
        "MiB",
        "peak 10 GiB",
        MoreThan("peak 1 MiB", 4.0),
    ),
    Row("**1,000 slow uploads at once**, peak memory", "MiB", "slow peak", AtMost(128.0)),
    Row("1,000 slow uploads at once, dropped", "uploads", "slow dropped", AtMost(0.0)),
    Row("curl straight to the fake cloud", "s", "cloud direct", Alone),
    Row("**curl through the gateway to the fake cloud**", "s", "cloud", CostOf("cloud direct", 1.1)),
    Row("curl straight to it, over a line of 1 Gbit/s", "s", "cloud direct, line", Alone),
    Row("curl through the gateway, over that line", "s", "cloud, line", CostOf("cloud direct, line", 1.1)),
    Row("client's sending, cloud healthy", "s", "client healthy", Alone),
    Row(
        "**client's sending, cloud a black hole**",
        "s",
        "client black hole",
        RateOf(&["client healthy"], 0.95),
    ),
    Row("curl sends 1,000 kept files of 1 MiB, two at a time", "s", "sync many straight", Alone),
    Row(
        "**sync of 1,000 recordings of 1 MiB**, from the start",
        "s",
        "sync many",
        CostOf("sync many straight", 0.0),
    ),
    Row("curl sends one kept file of 4 GiB", "s", "sync large straight", Alone),
    Row(
        "**sync of one recording of 4 GiB**, from the start",
        "s",
        "sync large",
        CostOf("sync large straight", 0.0),
    ),
    Row("one indexed query for the first page of 10,000 recordings", "ms", "page query", Alone),
    Row("**first page of 10,000 recordings**, through HTTP", "ms", "page", CostOf("page query", 2.0)),
    Row("**start to first answer**, 100,000 recordings in the catalogue", "ms", "start", AtMost(100.0)),
    Row("start to the first page of a session of 1,000 of them", "ms", "start page", Alone),
    Row("the gateway's binary", "MiB", "binary", Alone),
    Row("nginx serves the file", "s", "nginx content", Alone),
    Row("**gateway, `/content`** of a local file", "s", "content", RateOf(&["nginx content"], 0.9)),
    Row("nginx, 1,000 ranges of 64 KiB", "s", "nginx ranges", Alone),
    Row("gateway, 1,000 ranges of 64 KiB", "s", "ranges", RateOf(&["nginx ranges"], 0.9)),
];

/// The lines of a rival: who, what it leaves out, how many times the gateway's one upload its own is to take, and the
/// share of its processor time that the gateway's may be.
macro_rules! rival {
    ($who:literal, $duties:literal, $times:literal, $share:literal) => {
        [
            Row(
                concat!("**", $who, "**, one upload, ", $duties, "; times the gateway's"),
                "s",
                $who,
                TimesAsMany("one", $times),
            ),
            Row(
                concat!($who, ", one upload, CPU; the gateway's share of it"),
                "cpu s",
                concat!($who, " cpu"),
                OthersCost("one cpu", $share),
            ),
            Row(concat!($who, ", one upload, peak memory"), "MiB", concat!($who, " peak"), Alone),
            Row(
                concat!($who, ", 64 at once; times the gateway's"),
                "s",
                concat!($who, " 64"),
                TimesAsMany("many", 0.0),
            ),
            Row(
                concat!($who, ", 64 at once, CPU; the gateway's share of it"),
                "cpu s",
                concat!($who, " 64 cpu"),
                OthersCost("many cpu", 0.0),
            ),
            Row(concat!($who, ", 64 at once, peak memory"), "MiB", concat!($who, " 64 peak"), Alone),
        ]
    };
}

/// Rivals, by the names that their samples have too.
const RIVALS: [[Row; 6]; 6] = [
    rival!("FastAPI", "neither hashed nor synced", 0.0, 0.0),
    rival!("FastAPI tuned", "hashed and synced", 3.0, 0.5),
    rival!("FastAPI streamed", "written once, hashed and synced", 0.0, 0.5),
    rival!("@tus/server", "neither hashed nor synced", 2.0, 0.0),
    rival!("dufs", "neither hashed nor synced", 6.0, 0.0),
    rival!("nginx PUT", "neither hashed nor synced", 0.0, 0.0),
];

fn rows() -> impl Iterator<Item = &'static Row> {
    ROWS.iter().chain(RIVALS.iter().flatten())
}

/// A line of the table with its figures.
struct Line<'a> {
    row: &'static Row,
    values: &'a [f64],
    own: Spread,
    ratio: Option<Spread>,
    target: Option<Target>,
}

struct Target {
    /// Otherwise at most.
    at_least: bool,
    value: f64,
    met: bool,
}

/// The lines that have figures.
fn lines(samples: &Samples) -> impl Iterator<Item = Line<'_>> {
    rows().filter_map(|row| {
        let Row(_, _, name, compare) = row;
        let values = samples.get(name);
        let own = Spread::of(values)?;
        let paired = |others: &[&str], f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
            let other = |round: usize| {
                others.iter().filter_map(|o| samples.get(o).get(round)).copied().reduce(f64::max)
            };
            values.iter().enumerate().filter_map(|(round, own)| Some(f(*own, other(round)?))).collect()
        };
        let (ratios, value, at_least) = match compare {
            Alone => (Vec::new(), 0.0, false),
            RateOf(others, target) => (paired(others, &|own, other| other / own), *target, true),
            TimesAsMany(other, target) => (paired(&[other], &|own, other| own / other), *target, true),
            CostOf(other, target) => (paired(&[other], &|own, other| own / other), *target, false),
            OthersCost(other, target) => (paired(&[other], &|own, other| other / own), *target, false),
            MoreThan(other, target) => (paired(&[other], &|own, other| own - other), *target, false),
            AtMost(target) => (Vec::new(), *target, false),
        };
        let ratio = Spread::of(&ratios);
        let judged = if matches!(compare, AtMost(_)) { Some(own) } else { ratio.filter(|_| value > 0.0) };
        let target = judged.map(|judged| Target {
            at_least,
            value,
            met: if at_least { judged.median >= value } else { judged.median <= value },
        });
        Some(Line { row, values, own, ratio, target })
    })
}

/// The table, in Markdown. Rows without figures are left out.
pub fn markdown(samples: &Samples) -> String {
    let mut out = String::from(
        "| what | median [min–max] | ratio [min–max] | target | met |\n| --- | --- | --- | --- | --- |\n",
    );
    for Line { row: Row(what, unit, ..), own, ratio, target, .. } in lines(samples) {
        let ratio = ratio.map_or(String::new(), |ratio| ratio.to_string());
        let (target, met) = match target {
            None => (String::new(), ""),
            Some(Target { at_least, value, met }) => {
                (format!("{} {value}", if at_least { "≥" } else { "≤" }), if met { "yes" } else { "**no**" })
            }
        };
        let _ = writeln!(out, "| {what} | {own} {unit} | {ratio} | {target} | {met} |");
    }
    out
}

/// The same as JSON, with every single figure.
pub fn json(samples: &Samples) -> Value {
    let line = |line: Line| {
        let Row(what, unit, name, _) = line.row;
        let target = line.target.map(
            |Target { at_least, value, met }| json!({"at": if at_least { "least" } else { "most" }, "value": value, "met": met}),
        );
        json!({
            "what": what.replace(['*', '`'], ""), "name": name, "unit": unit, "values": line.values,
            "median": line.own.median, "min": line.own.least, "max": line.own.most,
            "ratio": line.ratio.map(Spread::json), "target": target,
        })
    };
    lines(samples).map(line).collect()
}

/// A figure for people.
pub fn number(value: f64) -> String {
    if value.abs() >= 10.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
