//! What the output is: a terminal, with or without colour and symbols, or something that programs read.

use std::env::var_os;
use std::io::{self, IsTerminal};

use imagewarm_core::check::Marks;

/// Standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// A person reads it, on a terminal that can move its cursor.
    pub(crate) is_interactive: bool,
    /// Colours are wanted.
    pub(crate) colour: bool,
}

impl Terminal {
    pub(crate) fn stdout() -> Self {
        let is_dumb = var_os("TERM").is_some_and(|term| term == "dumb");
        Terminal::of(
            io::stdout().is_terminal(),
            is_dumb,
            var_os("NO_COLOR").is_some_and(|it| !it.is_empty()),
        )
    }

    /// `NO_COLOR` counts when it is not empty (<https://no-color.org>).
    fn of(is_terminal: bool, is_dumb: bool, no_color: bool) -> Self {
        let is_interactive = is_terminal && !is_dumb;
        Terminal { is_interactive, colour: is_interactive && !no_color }
    }

    pub(crate) fn marks(self) -> Marks {
        Marks { symbols: self.is_interactive, colour: self.colour }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_and_symbols_are_for_terminals_only() {
        let shown = |terminal: Terminal| (terminal.marks().symbols, terminal.marks().colour);
        assert_eq!(shown(Terminal::of(true, false, false)), (true, true));
        assert_eq!(shown(Terminal::of(true, false, true)), (true, false));
        assert_eq!(shown(Terminal::of(true, true, false)), (false, false));
        assert_eq!(shown(Terminal::of(false, false, false)), (false, false));
    }
}
