" `:compiler amscript`, then `:make`: what `amscript check` finds in this file, in the quickfix list.
CompilerSet makeprg=amscript\ check\ %
CompilerSet errorformat=%Eerror:\ %m,%Wwarning:\ %m,%C\ \ -->\ %f:%l:%c,%Z\ %#\|,%-G%.%#
