//! How far long work is: a bar on the terminal; where there is none, a line of the log now and then.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::storage::Progress;

/// Pause between two lines: what is done sooner needs none.
const PAUSE: Duration = Duration::from_secs(30);

/// Shows what is told, as it can be seen.
pub(super) fn bar() -> Progress {
    if !std::io::stderr().is_terminal() {
        return lines(PAUSE, |what, percent| tracing::info!(percent, "{what}"));
    }
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {percent}% {elapsed} (ETA {eta})");
    let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    Box::new(move |what, done, total| {
        if bar.message() != what {
            bar.reset();
            bar.set_message(what.to_owned());
        }
        bar.set_length(total);
        bar.set_position(done);
        if done >= total {
            bar.finish_and_clear();
        }
    })
}

/// Says what is being done, and how many hundredths of it are, when that has taken so long.
fn lines(pause: Duration, say: impl Fn(&str, u64) + Send + 'static) -> Progress {
    let mut last = Instant::now();
    Box::new(move |what, done, total| {
        if last.elapsed() >= pause {
            last = Instant::now();
            let percent = u128::from(done.min(total)) * 100 / u128::from(total.max(1));
            say(what, u64::try_from(percent).unwrap_or(100));
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Under a service manager a start of hours said nothing.
    #[test]
    fn work_that_takes_long_says_how_far_it_is() {
        let said = Arc::<Mutex<Vec<(String, u64)>>>::default();
        let told = |pause| {
            let said = Arc::clone(&said);
            lines(pause, move |what, percent| said.lock().unwrap().push((what.to_owned(), percent)))
        };
        told(Duration::from_secs(3600))("rebuild", 1, 2);
        assert!(said.lock().unwrap().is_empty(), "it has just begun");
        let mut often = told(Duration::ZERO);
        often("rebuild", 1, 3);
        often("rebuild", u64::MAX, u64::MAX);
        often("count", 7, 0);
        let wanted = [("rebuild", 33), ("rebuild", 100), ("count", 0)];
        assert_eq!(*said.lock().unwrap(), wanted.map(|(what, percent)| (what.to_owned(), percent)));
    }
}
