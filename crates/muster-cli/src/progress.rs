//! What a running engine tells, as bars on a terminal and as plain lines elsewhere.

use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use muster_engine::{Event, Work};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::print;

/// Between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Shows events until the engine is done or gone.
pub(crate) async fn follow(mut events: UnboundedReceiver<Event>) {
    let mut view: Box<dyn View> =
        if print::talks_to_terminal() { Box::new(Bars::new()) } else { Box::new(Lines::new()) };
    while let Some(event) = events.recv().await {
        let done = matches!(event, Event::Done { .. });
        match event {
            Event::Taken { run, epoch, total, done, .. } => {
                view.say(&format!("run {run}, epoch {epoch}; if this is interrupted: muster resume {run}"));
                view.begin(total);
                view.advance(done);
            }
            Event::ShardReady { shard, found_published } if found_published > 0 => {
                view.say(&format!("shard {shard}: {found_published} stores were published already"));
            }
            Event::Refused { shard, sites, reason } => {
                view.say(&format!("shard {shard} refuses {} sites: {reason}", sites.len()));
            }
            Event::Failed { step, attempt, error, will_retry, .. } => {
                let then = if will_retry { "trying again" } else { "giving its site up" };
                view.say(&format!("{step}: attempt {attempt} failed, {then}: {error}"));
            }
            Event::Progress(work) => view.advance(work),
            Event::Stopping { running } => view.say(&format!("stopping: {running} steps are still running")),
            _ => {}
        }
        if done {
            break;
        }
    }
    view.end();
}

trait View: Send {
    fn begin(&mut self, total: Work);
    fn advance(&mut self, done: Work);
    fn say(&mut self, line: &str);
    fn end(&mut self);
}

/// Bars: sites, rows, bytes.
struct Bars {
    all: MultiProgress,
    sites: ProgressBar,
    rows: ProgressBar,
    bytes: ProgressBar,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let bar = |template: &str| {
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            all.add(ProgressBar::new(0)).with_style(style.progress_chars("━╸ "))
        };
        Self {
            sites: bar("sites {bar:40} {human_pos}/{human_len}  {elapsed} gone, about {eta} left"),
            rows: bar("rows  {bar:40} {human_pos}/{human_len}  {per_sec}"),
            bytes: bar("read  {bar:40} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}"),
            all,
        }
    }
}

impl View for Bars {
    fn begin(&mut self, total: Work) {
        self.sites.set_length(total.sites);
        self.rows.set_length(total.rows_published);
        self.bytes.set_length(total.bytes);
    }

    fn advance(&mut self, done: Work) {
        self.sites.set_position(done.sites);
        self.rows.set_position(done.rows_published);
        self.bytes.set_position(done.bytes);
    }

    fn say(&mut self, line: &str) {
        // The bars live on stderr, so the line goes above them; a closed terminal is not worth an error.
        let _ = self.all.println(line);
    }

    fn end(&mut self) {
        for bar in [&self.sites, &self.rows, &self.bytes] {
            bar.abandon();
        }
    }
}

/// Plain lines, now and then.
struct Lines {
    total: Work,
    began: Instant,
    first: Option<u64>,
    last: Option<Instant>,
    finished: bool,
}

impl Lines {
    fn new() -> Self {
        Self { total: Work::default(), began: Instant::now(), first: None, last: None, finished: false }
    }

    /// Seconds left at the pace of rows so far.
    fn seconds_left(&self, done: Work) -> Option<f64> {
        let gained = done.rows_published.saturating_sub(self.first?);
        let left = self.total.rows_published.saturating_sub(done.rows_published);
        (gained > 0).then(|| self.began.elapsed().as_secs_f64() * left as f64 / gained as f64)
    }
}

impl View for Lines {
    fn begin(&mut self, total: Work) {
        self.total = total;
    }

    fn advance(&mut self, done: Work) {
        self.first.get_or_insert(done.rows_published);
        let finished = done.sites == self.total.sites;
        if self.finished || (!finished && self.last.is_some_and(|last| last.elapsed() < LINE_INTERVAL)) {
            return;
        }
        self.finished = finished;
        self.last = Some(Instant::now());
        let left = match self.seconds_left(done) {
            Some(seconds) if !finished => format!(", about {} left", print::seconds(seconds)),
            _ => String::new(),
        };
        print::talk(format!(
            "{} of {} sites back, {} of {} rows, {} read{left}",
            print::count(done.sites),
            print::count(self.total.sites),
            print::count(done.rows_published),
            print::count(self.total.rows_published),
            print::bytes(done.bytes),
        ));
    }

    fn say(&mut self, line: &str) {
        print::talk(line);
    }

    fn end(&mut self) {}
}
