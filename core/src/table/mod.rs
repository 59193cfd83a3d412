//! ImageWarms as rows of a table: what one means to a reader, and the text or JSON of many.

pub mod images;
pub mod nodes;
pub mod row;
