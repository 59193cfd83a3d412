//! ImageWarms as rows of a table, the tables as text or JSON, and the report of what warming was worth.

pub mod images;
pub mod nodes;
pub mod row;
pub mod worth;
