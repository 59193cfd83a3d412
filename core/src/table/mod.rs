//! ImageWarms as rows of a table, and the tables as text or JSON.

pub mod images;
pub mod nodes;
pub mod row;
