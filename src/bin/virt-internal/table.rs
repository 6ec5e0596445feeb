// SPDX-License-Identifier: LGPL-2.1-or-later
//! Tables of text, with colours where a terminal shows them.

use std::fmt;
use std::io::IsTerminal;

/// How a text is meant.
#[derive(Clone, Copy)]
pub enum Tone {
    Plain,
    Heading,
    Good,
    Missing,
    Wrong,
}

/// Whether colours are shown: on a terminal, unless NO_COLOR is set.
fn colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !unwanted && std::io::stdout().is_terminal()
}

/// The text as the terminal shows it in that tone.
pub fn paint(tone: Tone, text: &str) -> String {
    let code = match tone {
        Tone::Plain => return text.to_owned(),
        Tone::Heading => 1,
        Tone::Good => 32,
        Tone::Missing => 33,
        Tone::Wrong => 31,
    };
    match colours() && !text.is_empty() {
        true => format!("\x1b[{code}m{text}\x1b[0m"),
        false => text.to_owned(),
    }
}

/// Cells of one line. A line that is shorter than the heading is a remark: its
/// last cell does not count for the width of its column.
type Line = Vec<(Tone, String)>;

pub struct Table {
    columns: usize,
    lines: Vec<Line>,
}

impl Table {
    pub fn new(heading: &[&str]) -> Table {
        let cell = |text: &&str| (Tone::Heading, (*text).to_owned());
        Table {
            columns: heading.len(),
            lines: vec![heading.iter().map(cell).collect()],
        }
    }

    pub fn add(&mut self, line: Line) {
        self.lines.push(line);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.columns - 1;
        let width = |column: usize| {
            self.lines
                .iter()
                .filter(|line| column + 1 < line.len())
                .map(|line| line[column].1.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..last).map(width).collect();
        for line in &self.lines {
            let mut text = String::new();
            for (column, (tone, cell)) in line.iter().enumerate() {
                let padding = match column + 1 < line.len() {
                    true => widths[column] + 2 - cell.chars().count(),
                    false => 0,
                };
                text += &paint(*tone, cell);
                text += &" ".repeat(padding);
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}
