//! All printing: data to stdout, talk to stderr. A closed pipe ends the process quietly.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Cell, CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};

fn emit(mut stream: impl Write, text: &str) {
    if let Err(error) = stream.write_all(text.as_bytes()).and_then(|()| stream.write_all(b"\n")) {
        let code = if error.kind() == io::ErrorKind::BrokenPipe { 0 } else { 1 };
        std::process::exit(code);
    }
}

/// A line of data.
pub(crate) fn data(text: impl AsRef<str>) {
    emit(io::stdout().lock(), text.as_ref());
}

/// A line of talk.
pub(crate) fn talk(text: impl AsRef<str>) {
    emit(io::stderr().lock(), text.as_ref());
}

/// Whether talk goes to a person's terminal.
pub(crate) fn talks_to_terminal() -> bool {
    io::stderr().is_terminal()
}

/// A table with a header; columns named in `numbers` are right-aligned.
pub(crate) fn table(
    header: &[&str],
    numbers: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let mut table = Table::new();
    let ruled = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));
    table.load_style(ruled).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().map(Cell::new));
    for row in rows {
        table.add_row(row);
    }
    for (index, name) in header.iter().enumerate() {
        if let (true, Some(column)) = (numbers.contains(name), table.column_mut(index)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

/// Bytes with a binary unit.
pub(crate) fn bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// A count with separators.
pub(crate) fn count(count: u64) -> String {
    indicatif::HumanCount(count).to_string()
}

/// Seconds as people say them.
pub(crate) fn seconds(seconds: f64) -> String {
    if seconds.abs() < 1.0 {
        return format!("{:.0} ms", seconds * 1e3);
    }
    if seconds.abs() < 120.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as i64;
    if whole < 7200 {
        return format!("{} min {:02} s", whole / 60, whole % 60);
    }
    format!("{} h {:02} min", whole / 3600, whole % 3600 / 60)
}
