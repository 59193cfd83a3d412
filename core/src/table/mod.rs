//! ImageWarms as rows of a table, the tables as text or JSON, the report of what warming was worth, and the
//! settings with which runtimes pin the images.

pub mod by_image;
pub mod duration;
pub mod filter;
pub mod images;
pub mod nodes;
pub mod pins;
pub mod row;
pub mod worth;
