# SPDX-License-Identifier: LGPL-2.1-or-later
# bash completion of vmmctl(1)

__vmmctl_machines() {
        vmmctl --quiet list 2>/dev/null | while read -r name state _; do
                case $1 in
                        all) echo "$name" ;;
                        running) [[ $state != stopped && $state != failed && $state != invalid ]] && echo "$name" ;;
                        stopped) [[ $state == stopped || $state == failed ]] && echo "$name" ;;
                esac
        done
}

__vmmctl_devices() {
        vmmctl --json=pretty describe "$1" 2>/dev/null | awk '
                /"name":/ { gsub(/[",]/, "", $2); name = $2 }
                /"type":"?/ { gsub(/[",]/, "", $2); if ($2 == "console" || $2 == "serial") print name }'
}

_vmmctl() {
        local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command='' machine='' i
        local -a commands=(start stop reset pause resume power-button status list console verify describe help)
        local -a options=(--help --version --json= --quiet --force --timeout= --escape= --no-ask-password --root= --runtime-directory=)

        # --option=value comes as three words
        [[ $cur == = ]] && cur=''
        [[ $prev == = ]] && prev=${COMP_WORDS[COMP_CWORD-2]}
        COMPREPLY=()
        compopt +o nospace
        case $prev in
                --json) mapfile -t COMPREPLY < <(compgen -W 'pretty short off' -- "$cur"); return ;;
                --escape) mapfile -t COMPREPLY < <(compgen -W 'none ^]' -- "$cur"); return ;;
                --root | --runtime-directory) mapfile -t COMPREPLY < <(compgen -d -- "$cur"); return ;;
                --timeout) return ;;
        esac
        if [[ $cur == -* ]]; then
                mapfile -t COMPREPLY < <(compgen -W "${options[*]}" -- "$cur")
                [[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace
                return
        fi

        for ((i = 1; i < COMP_CWORD; i++)); do
                case ${COMP_WORDS[i]} in
                        =) ((i++)) ;;
                        -*) ;;
                        *)
                                if [[ -z $command ]]; then
                                        command=${COMP_WORDS[i]}
                                else
                                        machine=${COMP_WORDS[i]}
                                fi
                                ;;
                esac
        done
        case $command in
                '') mapfile -t COMPREPLY < <(compgen -W "${commands[*]}" -- "$cur") ;;
                start) mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_machines stopped)" -- "$cur") ;;
                stop | reset | pause | resume | power-button) mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_machines running)" -- "$cur") ;;
                describe) [[ -n $machine ]] || mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_machines running)" -- "$cur") ;;
                status) mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_machines all)" -- "$cur") ;;
                verify)
                        compopt -o filenames
                        mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_machines all)" -- "$cur"; compgen -f -X '!*.json' -- "$cur"; compgen -d -- "$cur")
                        ;;
                console)
                        if [[ -z $machine ]]; then
                                mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_machines running)" -- "$cur")
                        else
                                mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_devices "$machine")" -- "$cur")
                        fi
                        ;;
        esac
}

complete -F _vmmctl vmmctl
