# SPDX-License-Identifier: LGPL-2.1-or-later
# bash completion of vmmctl(1)

# A completion never asks for a password, and never waits for one.
__vmmctl_run() {
        vmmctl --no-ask-password "$@" </dev/null 2>/dev/null
}

__vmmctl_machines() {
        __vmmctl_run --quiet list | while read -r name state _; do
                case $1 in
                        all) echo "$name" ;;
                        running) [[ $state != stopped && $state != failed && $state != invalid ]] && echo "$name" ;;
                        stopped) [[ $state == stopped || $state == failed ]] && echo "$name" ;;
                esac
        done
}

# MACHINE TYPE...: its devices of these types; of all types where none is given
__vmmctl_devices() {
        local machine=$1
        shift
        __vmmctl_run --json=pretty describe "$machine" | awk -v types=" $* " '
                /"name":/ { gsub(/[",]/, "", $2); name = $2 }
                /"type":"?/ { gsub(/[",]/, "", $2); if (types == "  " || index(types, " " $2 " ")) print name }'
}

__vmmctl_snapshots() {
        __vmmctl_run --quiet snapshot list | while read -r name _; do echo "$name"; done
}

# The last of a list with commas
__vmmctl_list() {
        local cur=$1 before=''
        [[ $cur == *,* ]] && before=${cur%,*},
        mapfile -t COMPREPLY < <(compgen -P "$before" -W "$2" -- "${cur##*,}")
        compopt -o nospace
}

_vmmctl() {
        local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command='' i
        local -a arguments=()
        local -a commands=(start stop reboot reset pause suspend resume reload snapshot status list verify console send-key power-button powerbtn sleep-button sleepbtn nmi balloon balloon-stats balloon-ws resize attach detach disk events describe fdt metrics log-level help)
        local -a options=(--help --version --host= --json --quiet --no-ask-password --runtime-directory= --root= --force --timeout= --full --stop --compress --directory= --escape= --port= --hold= --device= --wait --stats --working-set --intervals= --refresh-threshold= --report-threshold= --hint --follow --filter= --statistics= --dtb --prometheus)
        local events='machineState guestReady guestStatus panic deviceState deviceFailed deviceRestarted deviceAttached deviceDetached balloonTarget balloonActual balloonDeflatedOnOom workingSet statistics'
        local levels='error warning notice info debug'

        # --option=value comes as three words
        [[ $cur == = ]] && cur=''
        [[ $prev == = ]] && prev=${COMP_WORDS[COMP_CWORD-2]}
        COMPREPLY=()
        compopt +o nospace

        for ((i = 1; i < COMP_CWORD; i++)); do
                case ${COMP_WORDS[i]} in
                        =) ((i++)) ;;
                        -H) ((i++)) ;;
                        --*) [[ ${COMP_WORDS[i+1]-} != = && " ${options[*]} " == *" ${COMP_WORDS[i]}= "* ]] && ((i++)) ;;
                        -*) ;;
                        *)
                                if [[ -z $command ]]; then
                                        command=${COMP_WORDS[i]}
                                else
                                        arguments+=("${COMP_WORDS[i]}")
                                fi
                                ;;
                esac
        done

        case $prev in
                --json)
                        if [[ ${COMP_WORDS[COMP_CWORD-1]} == = || ${COMP_WORDS[COMP_CWORD]} == = ]]; then
                                mapfile -t COMPREPLY < <(compgen -W 'pretty short off' -- "$cur")
                                return
                        fi
                        ;;
                --escape) mapfile -t COMPREPLY < <(compgen -W 'none ^]' -- "$cur"); return ;;
                --root | --runtime-directory | --directory) mapfile -t COMPREPLY < <(compgen -d -- "$cur"); return ;;
                -H | --host) mapfile -t COMPREPLY < <(compgen -A hostname -- "$cur"); return ;;
                --filter) __vmmctl_list "$cur" "$events"; return ;;
                --device) mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_devices "${arguments[0]-}" balloon input)" -- "$cur"); return ;;
                --timeout | --port | --hold | --intervals | --refresh-threshold | --report-threshold | --statistics) return ;;
        esac
        if [[ $cur == -* ]]; then
                mapfile -t COMPREPLY < <(compgen -W "${options[*]}" -- "$cur")
                [[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace
                return
        fi

        case $command:${#arguments[@]} in
                :*) mapfile -t COMPREPLY < <(compgen -W "${commands[*]}" -- "$cur") ;;
                start:*) mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_machines stopped)" -- "$cur") ;;
                stop:* | reboot:* | reset:* | pause:* | suspend:* | resume:* | reload:* | power-button:* | powerbtn:* | sleep-button:* | sleepbtn:* | metrics:* | \
                nmi:0 | console:0 | send-key:0 | balloon:0 | balloon-stats:0 | balloon-ws:0 | resize:0 | attach:0 | detach:0 | disk:1 | events:0 | describe:0 | fdt:0 | log-level:0)
                        mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_machines running)" -- "$cur") ;;
                status:*) mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_machines all)" -- "$cur") ;;
                verify:*)
                        compopt -o filenames
                        mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_machines all)" -- "$cur"; compgen -f -X '!*.json' -- "$cur"; compgen -d -- "$cur")
                        ;;
                console:1) mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_devices "${arguments[0]}" console serial)" -- "$cur") ;;
                send-key:*) mapfile -t COMPREPLY < <(compgen -W 'power sleep enter esc tab space ctrl+alt+del ctrl+alt+f1 up down left right' -- "$cur") ;;
                balloon:1) mapfile -t COMPREPLY < <(compgen -W '0 25% 50% 75% max' -- "$cur") ;;
                resize:1) mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_devices "${arguments[0]}" block)" -- "$cur") ;;
                attach:2) mapfile -t COMPREPLY < <(compgen -W 'block console fs net rng' -- "$cur") ;;
                attach:*)
                        # The value of an option
                        [[ $prev == *= || ${COMP_WORDS[COMP_CWORD-1]} == = || ${COMP_WORDS[COMP_CWORD]} == = ]] || return
                        compopt -o filenames
                        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
                        ;;
                snapshot:0) mapfile -t COMPREPLY < <(compgen -W 'take restore list remove' -- "$cur") ;;
                snapshot:*)
                        case ${arguments[0]}:${#arguments[@]} in
                                take:1) mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_machines running)" -- "$cur") ;;
                                restore:2) mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_machines stopped)" -- "$cur") ;;
                                restore:1 | remove:*) mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_snapshots)" -- "$cur") ;;
                        esac
                        ;;
                detach:1) mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_devices "${arguments[0]}")" -- "$cur") ;;
                disk:0) mapfile -t COMPREPLY < <(compgen -W resize -- "$cur") ;;
                disk:2) mapfile -t COMPREPLY < <(compgen -W "$(__vmmctl_devices "${arguments[1]}" block)" -- "$cur") ;;
                log-level:1) mapfile -t COMPREPLY < <(compgen -W "$levels $(__vmmctl_devices "${arguments[0]}")" -- "$cur") ;;
                log-level:2) mapfile -t COMPREPLY < <(compgen -W "$levels" -- "$cur") ;;
        esac
}

complete -F _vmmctl vmmctl
