//! Numbers and times as people read them.

use muster_types::Timestamp;
use muster_types::report::StepTimes;

/// `12 345 678`, with narrow spaces.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 2);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// Bytes in binary units.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 10.0 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// A duration with two or three significant digits.
pub(crate) fn seconds(seconds: f64) -> String {
    let sign = if seconds < 0.0 { "−" } else { "" };
    let value = seconds.abs();
    let text = match value {
        v if v < 0.000_000_5 => "0 s".to_owned(),
        v if v < 0.001 => format!("{:.0} µs", v * 1e6),
        v if v < 1.0 => format!("{:.0} ms", v * 1e3),
        v if v < 10.0 => format!("{v:.2} s"),
        v if v < 120.0 => format!("{v:.1} s"),
        v if v < 7_200.0 => format!("{:.0} min {:02.0} s", (v / 60.0).floor(), (v % 60.0).floor()),
        v if v < 172_800.0 => {
            format!("{:.0} h {:02.0} min", (v / 3600.0).floor(), (v % 3600.0 / 60.0).floor())
        }
        v => format!("{:.1} days", v / 86_400.0),
    };
    format!("{sign}{text}")
}

/// A target, which is a whole number of seconds.
pub(crate) fn target(seconds_count: u64) -> String {
    match seconds_count {
        s if s >= 86_400 && s.is_multiple_of(86_400) => plural(s / 86_400, "day"),
        s if s >= 3_600 && s.is_multiple_of(3_600) => format!("{} h", s / 3_600),
        s if s >= 60 && s.is_multiple_of(60) => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

/// `1 site`, `2 sites`.
pub(crate) fn plural(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// What a missing value looks like.
pub(crate) const NONE: &str = "–";

/// [`seconds`], or a dash.
pub(crate) fn maybe_seconds(value: Option<f64>) -> String {
    value.map_or_else(|| NONE.to_owned(), seconds)
}

/// How times are written on one page: the date is left out where it is that of the run.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    date: String,
}

impl Clock {
    /// The date of `time` goes without saying.
    pub(crate) fn on(time: Timestamp) -> Self {
        Self { date: time.to_string().chars().take(10).collect() }
    }

    /// Milliseconds, UTC.
    pub(crate) fn time(&self, time: Timestamp) -> String {
        let text = time.to_string();
        match (text.get(..10), text.get(11..23)) {
            (Some(date), Some(clock)) if date == self.date => clock.to_owned(),
            (Some(date), Some(clock)) => format!("{date} {clock}"),
            _ => text,
        }
    }

    /// [`Self::time`], or a dash.
    pub(crate) fn maybe(&self, time: Option<Timestamp>) -> String {
        time.map_or_else(|| NONE.to_owned(), |time| self.time(time))
    }
}

/// Date and time to the second, UTC.
pub(crate) fn full(time: Timestamp) -> String {
    let text = time.to_string();
    text.get(..19).map_or(text.clone(), |text| format!("{} UTC", text.replace('T', " ")))
}

/// How long a step worked, and how often it was tried.
pub(crate) fn step(times: Option<&StepTimes>) -> String {
    let Some(times) = times else { return NONE.to_owned() };
    let took = times
        .ended_at
        .map_or_else(|| "running".to_owned(), |end| seconds(end.seconds_since(times.started_at)));
    if times.attempts > 1 { format!("{took} (attempt {})", times.attempts) } else { took }
}

/// How long it waited for its turn.
pub(crate) fn queue(times: Option<&StepTimes>) -> String {
    times.map_or_else(|| NONE.to_owned(), |times| seconds(times.started_at.seconds_since(times.ready_at)))
}
