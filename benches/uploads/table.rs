//! Samples, their medians and ratios, and the table that is printed.
//!
//! Apart so that what is compared with what stands in one place, beside its target. Nothing here measures.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

/// Every figure taken, by name, in the order of the rounds.
#[derive(Default)]
pub struct Samples(BTreeMap<&'static str, Vec<f64>>);

impl Samples {
    /// Adds a round's figure.
    pub fn add(&mut self, name: &'static str, value: f64) {
        self.0.entry(name).or_default().push(value);
    }

    fn get(&self, name: &str) -> &[f64] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// All of them, as JSON.
    pub fn json(&self) -> Value {
        json!(self.0)
    }
}

/// How a figure is compared. Ratios are taken round by round, then their median.
enum Compare {
    /// The figure alone.
    Alone,
    /// Times: the slowest of the others' divided by this one's; at least the target.
    RateOf(&'static [&'static str], f64),
    /// Rates: this one's divided by the other's; at least the target.
    TimesAsMany(&'static str, f64),
    /// Times: this one's divided by the other's; at most the target.
    CostOf(&'static str, f64),
    /// The difference to the other, in the figure's unit; at most the target.
    MoreThan(&'static str, f64),
    /// The figure itself; at most the target.
    AtMost(f64),
}

struct Row(&'static str, &'static str, &'static str, Compare);

use Compare::{Alone, AtMost, CostOf, MoreThan, RateOf, TimesAsMany};

/// What, unit, sample, comparison. Targets are the product's; a comparison with target 0 has none.
const ROWS: &[Row] = &[
    Row("limit: SHA-256 on one core", "s", "sha", Alone),
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
    Row("bare loop, CPU", "cpu s", "floor cpu", Alone),
    Row("**gateway, CPU**, against the bare loop", "cpu s", "one cpu", CostOf("floor cpu", 1.1)),
    Row(
        "gateway, CPU, frames of 16 KiB, against the bare loop",
        "cpu s",
        "one, 16 KiB frames cpu",
        CostOf("floor cpu", 0.0),
    ),
    Row("bare loop, 64 at once", "s", "floor 64", Alone),
    Row(
        "**gateway, 64 at once**, against the bare loop in 64 threads",
        "s",
        "many",
        RateOf(&["floor 64"], 1.0),
    ),
    Row("gateway, 64 at once, CPU, against the bare loop", "cpu s", "many cpu", CostOf("floor 64 cpu", 0.0)),
    Row("gateway, 64 at once, peak memory", "MiB", "many peak", AtMost(100.0)),
    Row("one fsync of file and directory each, 64 threads", "files/s", "small floor", Alone),
    Row(
        "**small durable uploads**, 64 clients, 64 KiB",
        "uploads/s",
        "small",
        TimesAsMany("small floor", 5.0),
    ),
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
    Row("nginx serves the file", "s", "nginx content", Alone),
    Row("**gateway, `/content`** of a local file", "s", "content", RateOf(&["nginx content"], 0.9)),
    Row("nginx, 1,000 ranges of 64 KiB", "s", "nginx ranges", Alone),
    Row("gateway, 1,000 ranges of 64 KiB", "s", "ranges", RateOf(&["nginx ranges"], 0.9)),
];

/// The table, in Markdown. Rows without figures are left out.
pub fn markdown(samples: &Samples) -> String {
    let mut out = String::from(
        "| what | median [min–max] | ratio [min–max] | target | met |\n| --- | --- | --- | --- | --- |\n",
    );
    for Row(what, unit, name, compare) in ROWS {
        let own = samples.get(name);
        if own.is_empty() {
            continue;
        }
        let paired = |others: &[&str], f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
            let other = |round: usize| {
                others.iter().filter_map(|o| samples.get(o).get(round)).copied().reduce(f64::max)
            };
            own.iter().enumerate().filter_map(|(round, own)| Some(f(*own, other(round)?))).collect()
        };
        let (ratios, target, least) = match compare {
            Alone => (Vec::new(), 0.0, false),
            RateOf(others, target) => (paired(others, &|own, other| other / own), *target, true),
            TimesAsMany(other, target) => (paired(&[other], &|own, other| own / other), *target, true),
            CostOf(other, target) => (paired(&[other], &|own, other| own / other), *target, false),
            MoreThan(other, target) => (paired(&[other], &|own, other| own - other), *target, false),
            AtMost(target) => (own.to_vec(), *target, false),
        };
        let has_target = matches!(compare, AtMost(_)) || target > 0.0;
        let ratio = if matches!(compare, AtMost(_)) { String::new() } else { spread(&ratios) };
        let (target_text, met) = match median(&ratios) {
            Some(ratio) if has_target => {
                let met = if least { ratio >= target } else { ratio <= target };
                (format!("{} {target}", if least { "≥" } else { "≤" }), if met { "yes" } else { "**no**" })
            }
            _ => (String::new(), ""),
        };
        let _ = writeln!(out, "| {what} | {} {unit} | {ratio} | {target_text} | {met} |", spread(own));
    }
    out
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

fn spread(values: &[f64]) -> String {
    let Some(middle) = median(values) else { return String::new() };
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match values.len() {
        1 => number(middle),
        _ => format!("{} [{}–{}]", number(middle), number(least), number(most)),
    }
}

fn number(value: f64) -> String {
    if value.abs() >= 10.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
