//! Progress bars on the terminal; nothing where there is none.

use indicatif::{ProgressBar, ProgressStyle};

use crate::storage::Progress;

/// A bar that follows what is told.
pub(super) fn bar() -> Progress {
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
