//! What a run says: a JSON line for each scenario on stdout, and a table on stderr at its end.

use std::io::Write;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::load::median;
use crate::machine::{Machine, load};

/// The raw loop's side of a scenario.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Beside {
    /// What the raw loop did.
    pub(crate) what: String,
    /// Its median, in `unit`.
    pub(crate) median: f64,
    pub(crate) unit: &'static str,
    /// Measured over raw, in the raw loop's unit, round by round.
    pub(crate) ratios: Vec<f64>,
    /// Their median: the figure to quote.
    pub(crate) ratio: f64,
}

impl Beside {
    /// From the rounds: (measured, raw), both in `unit`.
    pub(crate) fn new(what: impl Into<String>, unit: &'static str, rounds: &[(f64, f64)]) -> Self {
        let ratios: Vec<f64> = rounds.iter().map(|(ours, raw)| round(ours / raw.max(1e-9))).collect();
        let raw: Vec<f64> = rounds.iter().map(|(_, raw)| *raw).collect();
        let ratio = round(median(&ratios));
        Self { what: what.into(), median: round(median(&raw)), unit, ratios, ratio }
    }
}

/// One scenario.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    /// `engine/put/4K/32`
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    /// One figure a round.
    pub(crate) figures: Vec<f64>,
    pub(crate) raw: Option<Beside>,
    /// What is asked of it, and whether it holds.
    pub(crate) wanted: Option<(String, bool)>,
    pub(crate) details: Map<String, Value>,
}

#[derive(Serialize)]
struct Line<'a> {
    scenario: &'a str,
    median: f64,
    unit: &'a str,
    rounds: usize,
    least: f64,
    most: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: &'a Option<Beside>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wanted: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
    details: &'a Map<String, Value>,
    /// One-minute load when the scenario ended; the bench's own work counts in it.
    load: f64,
    machine: &'a Machine,
}

/// Two decimals for what is large, four for what is small.
pub(crate) fn round(figure: f64) -> f64 {
    let scale = if figure.abs() < 10.0 { 1e4 } else { 1e2 };
    (figure * scale).round() / scale
}

/// The run's output.
#[derive(Debug)]
pub(crate) struct Report {
    machine: Machine,
    done: Vec<Scenario>,
}

impl Report {
    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine, done: Vec::new() }
    }

    /// Prints a scenario's line.
    pub(crate) fn add(&mut self, scenario: Scenario) -> Result<(), Failure> {
        let line = Line {
            scenario: &scenario.name,
            median: round(median(&scenario.figures)),
            unit: scenario.unit,
            rounds: scenario.figures.len(),
            least: round(scenario.figures.iter().copied().fold(f64::INFINITY, f64::min)),
            most: round(scenario.figures.iter().copied().fold(0.0, f64::max)),
            raw: &scenario.raw,
            wanted: scenario.wanted.as_ref().map(|(text, _)| text.as_str()),
            met: scenario.wanted.as_ref().map(|(_, met)| *met),
            details: &scenario.details,
            load: load(),
            machine: &self.machine,
        };
        let text = serde_json::to_string(&line).map_err(|e| Failure::io("write output")(e.into()))?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).map_err(Failure::io("write output"))?;
        self.done.push(scenario);
        Ok(())
    }

    /// The table for people.
    pub(crate) fn table(&self) {
        let machine = &self.machine;
        let mut text = format!(
            "\n{} on {} ({} cores, {} MiB), {} on {}, load before {:.2}\n{:<22} {:>12} {:<8} {:>12} {:<6} {:>6}  {}\n",
            machine.commit,
            machine.cpu,
            machine.cores,
            machine.memory_mib,
            machine.file_system,
            machine.disk,
            machine.load_before,
            "scenario",
            "median",
            "",
            "raw median",
            "",
            "ratio",
            "wanted",
        );
        for one in &self.done {
            let raw = one.raw.as_ref();
            text += &format!(
                "{:<22} {:>12.1} {:<8} {:>12} {:<6} {:>6}  {}\n",
                one.name,
                median(&one.figures),
                one.unit,
                raw.map(|raw| format!("{:.1}", raw.median)).unwrap_or_default(),
                raw.map(|raw| raw.unit).unwrap_or_default(),
                raw.map(|raw| format!("{:.2}", raw.ratio)).unwrap_or_default(),
                one.wanted.as_ref().map(verdict).unwrap_or_default(),
            );
        }
        say(&text);
    }
}

fn verdict((wanted, met): &(String, bool)) -> String {
    format!("{wanted}: {}", if *met { "met" } else { "NOT MET" })
}

/// A line to whoever watches.
pub(crate) fn say(text: &str) {
    // Nobody watching is no reason to stop.
    let _closed = writeln!(std::io::stderr().lock(), "{text}");
}

/// The one line of a failed run.
pub(crate) fn complain(failure: &Failure) {
    say(&format!("quarry-bench: {failure}"));
}

/// `4K`, `64K`, `1M`.
pub(crate) fn size_text(bytes: u64) -> String {
    match bytes {
        n if n >= 1 << 20 && n.is_multiple_of(1 << 20) => format!("{}M", n >> 20),
        n if n >= 1 << 10 && n.is_multiple_of(1 << 10) => format!("{}K", n >> 10),
        n => n.to_string(),
    }
}

/// Details from pairs.
pub(crate) fn details<const N: usize>(pairs: [(&str, Value); N]) -> Map<String, Value> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_the_median_of_the_rounds_ratios() {
        let beside = Beside::new("x", "MiB/s", &[(90.0, 100.0), (50.0, 100.0), (99.0, 100.0)]);
        assert_eq!((beside.ratio, beside.median), (0.9, 100.0));
    }

    #[test]
    fn sizes_read_as_they_are_given() {
        assert_eq!([4096, 1 << 20, 100].map(size_text), ["4K", "1M", "100"]);
    }
}
