"""refembed and other people's libraries: one module each, imported when somebody who has the library asks for it."""
