//! Enums whose variants are written by name: in conditions, Events, metric labels and tables alike.

/// An enum with a fixed name for each variant.
pub trait Label: Copy + 'static {
    /// Every variant, in the order of the documentation.
    const ALL: &'static [Self];

    /// The variant's name, in upper camel case.
    fn as_str(self) -> &'static str;
}

/// Declares enums that implement [`Label`]: a variant is written by its name.
#[macro_export]
macro_rules! labels {
    ($($(#[$attribute:meta])* $visibility:vis enum $name:ident {
        $($(#[$doc:meta])* $variant:ident,)+
    })+) => {$(
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        $visibility enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every variant, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$($name::$variant,)+];

            /// The variant's name.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => stringify!($variant),)+ }
            }
        }

        impl $crate::label::Label for $name {
            const ALL: &'static [Self] = $name::ALL;

            fn as_str(self) -> &'static str {
                $name::as_str(self)
            }
        }
    )+};
}
